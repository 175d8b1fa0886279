"""Dilated attention on a GPU equals its definition in float64."""

import pytest
import torch
from torch import Tensor

from tests.helpers import pair, triple
from torchscale_fairseq import dilated_attention
from torchscale_fairseq.core.ops.dilated_pattern import naive_dilated_attention
from torchscale_fairseq.core.ops.partial_attention import (
    NAIVE,
    Efficient,
    Flash,
    FlashAttnPackage,
    Kernel,
    PartialRequest,
    Scores,
    choose_kernel,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
RELATIVE_ERROR = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Root mean square, as for the other fused kernels of attention."""
SEGMENTS, RATIOS = [16, 64, 256], [1, 2, 5]


@pytest.fixture(autouse=True)
def full_precision_matmul() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def inputs(length: int, head_dim: int, dtype: torch.dtype, heads: int = 4) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(2, length, heads, head_dim, generator=generator, device="cuda").to(dtype) for _ in range(3)]


def padding(kind: str, length: int) -> Tensor | None:
    position, real = torch.arange(length, device="cuda"), torch.tensor([length, length // 3], device="cuda")[:, None]
    return {"none": None, "left": position < length - real, "right": position >= real}[kind]


def output_and_gradients(form: object, tensors: list[Tensor], mask: Tensor | None, **options: object) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = form(*leaves, SEGMENTS, RATIOS, key_padding_mask=mask, **options)  # type: ignore[operator]
    if mask is not None:
        output = output.masked_fill(mask[:, :, None, None], 0.0)
    upstream = torch.linspace(-1, 1, output.numel(), device="cuda", dtype=torch.float64).view_as(output).sin()
    return [output.detach(), *torch.autograd.grad((output * upstream.to(output.dtype)).sum(), leaves)]


def assert_near(found: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    for name, actual, expected in zip(("output", "query", "key", "value"), found, exact, strict=True):
        assert actual.isfinite().all(), name
        error = ((actual.double() - expected).norm() / expected.norm()).item()
        assert error < RELATIVE_ERROR[dtype], f"{name}: relative RMS error {error}"


@pytest.mark.parametrize("pad", ["none", "left", "right"])
@pytest.mark.parametrize("length", [256, 331])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_its_definition(dtype: torch.dtype, causal: bool, head_dim: int, length: int, pad: str) -> None:
    tensors, mask = inputs(length, head_dim, dtype), padding(pad, length)
    exact = output_and_gradients(naive_dilated_attention, [x.double() for x in tensors], mask, causal=causal)
    assert_near(output_and_gradients(dilated_attention, tensors, mask, causal=causal), exact, dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [20, 36, 288])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_heads_that_kernels_do_not_take(dtype: torch.dtype, head_dim: int, causal: bool) -> None:
    """Channels that eight does not divide, more than flash attention has, and float64."""
    tensors = inputs(100, head_dim, dtype, heads=3)
    exact = output_and_gradients(naive_dilated_attention, [x.double() for x in tensors], None, causal=causal)
    assert_near(output_and_gradients(dilated_attention, tensors, None, causal=causal), exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torchscale_compatible(dtype: torch.dtype) -> None:
    """As on a CPU, where the golden vectors of tests/parity speak for it."""
    tensors = inputs(331, 64, dtype)
    options = {"causal": True, "torchscale_compatible": True}
    exact = output_and_gradients(dilated_attention, [x.double() for x in tensors], None, backend="naive", **options)
    assert_near(output_and_gradients(dilated_attention, tensors, None, **options), exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_more_segments_than_a_launch_takes(dtype: torch.dtype) -> None:
    tensors = triple(x[:1].repeat(1, 700, 1, 1) for x in inputs(200, 32, dtype, heads=1))
    output = dilated_attention(*tensors, [2], [1], causal=True)
    assert torch.equal(output[:, :200], output[:, -200:])


class TestKernels:
    @pytest.fixture(params=[Flash(), Efficient(), FlashAttnPackage()], ids=lambda kernel: type(kernel).__name__)
    def kernel(self, request: pytest.FixtureRequest) -> Kernel:
        if isinstance(request.param, FlashAttnPackage):
            pytest.importorskip("flash_attn")
        kernel: Kernel = request.param
        return kernel

    @pytest.mark.parametrize("length", [64, 77])
    def test_equals_the_written_out_one(self, kernel: Kernel, length: int) -> None:
        """Log-sum-exp too, and gradients of a softmax over the keys twice."""
        query, key, value = (x.transpose(1, 2) for x in inputs(length, 64, torch.float16))
        scores = Scores(True, None, 0.125, 0.0)
        found = kernel.forward(query, key, value, scores)
        exact = NAIVE.forward(query.double(), key.double(), value.double(), scores)
        assert (found.log_sum_exp - exact.log_sum_exp).abs().max() < 1e-2
        twice = torch.log(torch.tensor(2.0, device="cuda"))
        ours, theirs = (part._replace(log_sum_exp=part.log_sum_exp + twice) for part in (found, exact))
        shares = kernel.backward(found.output, query, key, value, ours, scores)
        expected = NAIVE.backward(found.output.double(), query.double(), key.double(), value.double(), theirs, scores)
        assert_near([found.output, *shares], [exact.output, *expected], torch.float16)

    @pytest.mark.parametrize("queries, keys", [(16, 32), (16, 16), (48, 48), (13, 70)])
    @pytest.mark.parametrize("head_dim", [4, 64])
    def test_part_of_a_larger_softmax(self, kernel: Kernel, head_dim: int, queries: int, keys: int) -> None:
        """Gradients of the keys that a kernel saw of twice as many, by whole output and log-sum-exp; not causal."""
        query = inputs(queries, head_dim, torch.float16)[0].transpose(1, 2)
        key, value = (x.transpose(1, 2) for x in inputs(2 * keys, head_dim, torch.float16)[1:])
        scores = Scores(False, None, head_dim**-0.5, 0.0)
        upstream = torch.linspace(-3, 3, query.numel(), device="cuda").view_as(query).sin().half()
        exact = triple(x.double() for x in (query, key, value))
        whole = NAIVE.forward(*exact, scores)
        expected = NAIVE.backward(upstream.double(), exact[0], *pair(x[:, :, :keys] for x in exact[1:]), whole, scores)
        seen = key[:, :, :keys].contiguous(), value[:, :, :keys].contiguous()
        own = kernel.forward(query, *seen, scores)
        part = own._replace(output=whole.output.half(), log_sum_exp=whole.log_sum_exp.float())
        shares = kernel.backward(upstream, query, *seen, part, scores)
        assert_near([whole.output.half(), *shares], [whole.output, *expected], torch.float16)

    def test_drops_the_same_weights_in_the_backward_pass(self, kernel: Kernel) -> None:
        """With values that are one-hot the output is the dropped weights, from which the gradient follows."""
        query, key, _ = (x.transpose(1, 2) for x in inputs(64, 64, torch.float16))
        value = torch.eye(64, device="cuda", dtype=torch.float16).expand_as(key).contiguous()
        scores = Scores(False, None, 0.125, 0.25)
        dropped = kernel.forward(query, key, value, scores)
        weights = dropped.output.double()
        assert 0.2 < (weights == 0).double().mean() < 0.3
        upstream = inputs(64, 64, torch.float16)[2].transpose(1, 2).contiguous()
        *_, of_value = kernel.backward(upstream, query, key, value, dropped, scores)
        expected = weights.mT @ upstream.double()
        assert ((of_value.double() - expected).norm() / expected.norm()).item() < RELATIVE_ERROR[torch.float16]

    def test_choice(self) -> None:
        query = torch.zeros(1, 1, 4, 64, device="cuda")
        hidden = torch.zeros(1, 1, 1, 4, dtype=torch.bool, device="cuda")
        for dtype, mask, kind in (
            (torch.float16, None, Flash),
            (torch.bfloat16, None, Flash),
            (torch.float16, hidden, Efficient),
            (torch.float32, None, Efficient),
            (torch.float64, None, type(NAIVE)),
        ):
            x = query.to(dtype)
            assert type(choose_kernel(PartialRequest(x, x, x, Scores(False, mask, 1.0, 0.1)), "sdpa")) is kind


def test_dropout_is_right_in_the_mean() -> None:
    torch.manual_seed(0)
    tensors = triple(x[:1].repeat(2000, 1, 1, 1) for x in inputs(24, 32, torch.float16))
    plain, dropped = (dilated_attention(*tensors, [8, 24], [1, 2], dropout=p) for p in (0.0, 0.2))
    assert (dropped != plain).any()
    torch.testing.assert_close(dropped.float().mean(0), plain[0].float(), atol=0.06, rtol=0)


def test_memory_is_linear() -> None:
    """Peak bytes per token of forward and backward over 16,384 and 65,536 tokens."""
    peaks = []
    for length in (16384, 65536):
        leaves = triple(x[:1].requires_grad_() for x in inputs(length, 64, torch.bfloat16))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        dilated_attention(*leaves, [2048, 8192, 32768], [1, 4, 16], causal=True).sum().backward()
        peaks.append((torch.cuda.max_memory_allocated() - before) / length)
    assert peaks[1] < 1.1 * peaks[0]
