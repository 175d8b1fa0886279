"""Padding, documents and a state in the kernel of flash-linear-attention: equal to float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from torchscale_fairseq.core.ops.retention import parallel_retention
from torchscale_fairseq.core.ops.retention_forms import retention
from torchscale_fairseq.core.ops.retention_tables import log_decays

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BOUND = 2e-2
"""Relative RMS error of bfloat16, as for the kernel without padding."""
LENGTH = 300


def masks(kind: str) -> dict[str, Tensor]:
    token = torch.arange(LENGTH, device="cuda")
    left = token < torch.tensor([[0], [37], [LENGTH]], device="cuda")
    starts = (token == torch.tensor([[150], [64], [3]], device="cuda")) | (token == 200)
    return {
        "left padding": {"padding_mask": left},
        "right padding": {"padding_mask": left.flip(1)},
        "documents": {"document_starts": starts},
        "both": {"padding_mask": left, "document_starts": starts},
    }[kind]


def results(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> list[Tensor]:
    """Output, state and gradients of real tokens."""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(3, LENGTH, 4, 64), (3, LENGTH, 4, 64), (3, LENGTH, 4, 128), (3, 4, 64, 128)]
    drawn = [torch.randn(s, generator=generator, device="cuda").bfloat16() / 8 for s in shapes]
    query, key, value, state = (x.to(dtype).requires_grad_() for x in drawn)
    log_decay = log_decays(4, "powers", torch.device("cuda"))
    if backend == "exact":
        output, after = parallel_retention(query, key, value, log_decay.double(), state=state, **options)
    else:
        output, after = retention(query, key, value, log_decay.float(), backend=backend, state=state, **options)
    if "padding_mask" in options:
        output = output.masked_fill(options["padding_mask"][..., None, None], 0.0)
    loss = (output * torch.linspace(-1, 1, LENGTH, device="cuda").view(1, -1, 1, 1)).sum() + after.sum()
    return [output.detach(), after.detach(), *torch.autograd.grad(loss, (query, key, value, state))]


@pytest.mark.parametrize("kind", ["left padding", "right padding", "documents", "both"])
def test_equals_float64(kind: str) -> None:
    pytest.importorskip("fla")
    options = masks(kind)
    names = ("output", "state", "query", "key", "value", "state before")
    for name, found, wanted in zip(
        names, results("fla", torch.bfloat16, options), results("exact", torch.float64, options), strict=True
    ):
        error = (found.double() - wanted).norm() / wanted.norm().clamp(min=1e-9)
        assert error < BOUND, f"{name}: relative RMS error {error}"
