"""The kernels that compute all branches of dilated attention at once: equal to the definition in float64.

Without a GPU, Triton's interpreter, which knows no bfloat16, runs some of them, a few seconds each: TRITON_INTERPRET=1
python -m pytest tests/gpu/test_dilated_kernels.py -k "torch.float16 and 24"
"""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.gpu.kernels import DEVICE, KERNELS_RUN, on_a_gpu
from tests.gpu.memory import poison
from torchscale_fairseq import dilated_attention
from torchscale_fairseq.core.ops import dilated
from torchscale_fairseq.core.ops.dilated import AllBranchesAtOnce, DilatedRequest
from torchscale_fairseq.core.ops.dilated_parts import Settings
from torchscale_fairseq.core.ops.dilated_pattern import checked_branches, naive_dilated_attention

pytestmark = [
    *KERNELS_RUN,
    pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.get_device_capability()[0] != 9, reason="no Hopper GPU"),
]
BOUND = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Relative RMS error, through a softmax and the sum over branches."""
BRANCHES = {
    "doubling": ([64, 128, 512], [1, 2, 4]),
    "uneven": ([50, 200, 1000], [1, 3, 7]),
    "one": ([256], [1]),
    "sparse": ([32, 96], [4, 12]),
}


@pytest.fixture(autouse=True)
def in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the kernels serve tensors of the CPU."""
    if DEVICE == "cpu":
        monkeypatch.setattr(
            dilated, "_kernel_refusal", lambda query: None if query.dtype in BOUND else "is the definition"
        )


def inputs(length: int, head_dim: int, dtype: torch.dtype, *, heads: int = 5, batch: int = 2) -> list[Tensor]:
    """Query, key, value and the output's gradient; the first three are views of one projection."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    drawn = torch.randn(batch, length, 4 * heads * head_dim, generator=generator, device=DEVICE).to(dtype)
    *views, gradient = (x.unflatten(2, (heads, head_dim)) for x in drawn.chunk(4, 2))
    return [*views, gradient.contiguous()]


def results(form: Any, tensors: list[Tensor], branches: str, mask: Tensor | None, *, causal: bool) -> list[Tensor]:
    """Output and gradients."""
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    output = form(*leaves, *BRANCHES[branches], causal=causal, key_padding_mask=mask)
    if mask is not None:
        output = output.masked_fill(mask[:, :, None, None], 0.0)
    return [output.detach(), *torch.autograd.grad(output, leaves, tensors[3].to(output.dtype))]


def assert_equal(tensors: list[Tensor], branches: str, *, causal: bool, mask: Tensor | None = None) -> None:
    """To the definition."""
    if DEVICE == "cuda":
        poison()
    found = results(dilated_attention, tensors, branches, mask, causal=causal)
    exact = results(naive_dilated_attention, [x.double() for x in tensors], branches, mask, causal=causal)
    for name, actual, expected in zip(("output", "query", "key", "value"), found, exact, strict=True):
        error = ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-2)).item()
        assert error < BOUND[tensors[0].dtype], f"{name}: relative RMS error {error}"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 63, 500, 1024])
@pytest.mark.parametrize("branches", BRANCHES)
def test_equals_the_definition(branches: str, length: int, causal: bool) -> None:
    assert_equal(inputs(length, 64, torch.bfloat16), branches, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("head_dim", [8, 24, 32, 80, 128])
def test_widths_of_heads(head_dim: int, dtype: torch.dtype, causal: bool) -> None:
    assert_equal(inputs(300, head_dim, dtype, heads=3), "doubling", causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str, causal: bool) -> None:
    """One row without padding, one with, and one of a single token."""
    token, real = torch.arange(333, device=DEVICE), torch.tensor([[333], [100], [1]], device=DEVICE)
    mask = token < 333 - real if side == "left" else token >= real
    assert_equal(inputs(333, 64, torch.bfloat16, batch=3), "uneven", causal=causal, mask=mask)


@on_a_gpu
def test_it_serves_these_requests() -> None:
    query, key, value, _ = inputs(64, 64, torch.bfloat16)
    branches = checked_branches(*BRANCHES["doubling"])
    request = DilatedRequest(query, key, value, branches, True, None, Settings(0.125))
    assert AllBranchesAtOnce().refusal(request) is None


@on_a_gpu
def test_compiled_in_one_graph() -> None:
    tensors = inputs(500, 64, torch.bfloat16)
    plain = results(dilated_attention, tensors, "doubling", None, causal=True)
    compiled = results(torch.compile(dilated_attention, fullgraph=True), tensors, "doubling", None, causal=True)
    for one, other in zip(plain, compiled, strict=True):  # compiled code rounds elsewhere
        assert (one.double() - other.double()).norm() < BOUND[torch.bfloat16] * one.double().norm()
