"""Products and norms group by group: each form against torch's own, group after group."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.helpers import assert_close, triple
from torchscale_fairseq.core.ops import grouped_products
from torchscale_fairseq.core.ops.grouped import _GroupedAffine, _GroupedLinear, grouped_linear, grouped_norm
from torchscale_fairseq.core.ops.grouped_products import BATCHED, KERNEL, LOOP, Products, products_for
from torchscale_fairseq.core.ops.segments import Segments

SIZES = (3, 0, 5, 1)
SEGMENTS = Segments(torch.tensor(SIZES))
FORMS = {"loop": LOOP, "batched": BATCHED, "kernel": KERNEL}


def inputs(dtype: torch.dtype, *, bias: bool) -> list[Tensor | None]:
    """Rows, weights and biases of four groups."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(SIZES), 8), (4, 16, 8), (4, 16))
    x, weight, shift = (torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes)
    return [x, weight, shift if bias else None]


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
    """One F.linear after the other."""
    biases = [None] * len(sizes) if bias is None else bias.unbind(0)
    return torch.cat([F.linear(r, w, b) for r, w, b in zip(x.split(sizes), weight, biases, strict=True)])


def with_gradients(output: Tensor, leaves: list[Tensor | None]) -> list[Tensor]:
    direction = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    gradients = torch.autograd.grad((output * direction).sum(), [leaf for leaf in leaves if leaf is not None])
    return [output, *gradients]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_products_equal_torch(form: str, bias: bool) -> None:
    if form == "kernel" and grouped_products.grouped_mm is None:
        pytest.skip("this torch has no grouped product")
    leaves = inputs(torch.float32 if form == "kernel" else torch.float64, bias=bias)
    expected = with_gradients(by_torch(*triple(leaves), SIZES), leaves)
    found = with_gradients(_GroupedLinear.apply(*leaves, SEGMENTS, FORMS[form]), leaves)
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, "float32" if form == "kernel" else "float64")
    assert found[2][1].eq(0).all(), "a group without rows has no gradient"


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm_equals_torch(kind: str) -> None:
    """The form for CPUs, and the one for GPUs."""
    x, _, _ = inputs(torch.float64, bias=True)
    assert x is not None
    weight = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 8, dtype=torch.float64, requires_grad=True) if kind == "layernorm" else None
    normed = F.rms_norm(x, (8,), None, 1e-5) if bias is None else F.layer_norm(x, (8,), eps=1e-5)
    rows = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 3])
    expected = with_gradients(normed * weight[rows] + (0 if bias is None else bias[rows]), [x, weight, bias])
    on_cpu = with_gradients(grouped_norm(x, weight, bias, SEGMENTS, eps=1e-5), [x, weight, bias])
    normed = F.rms_norm(x, (8,), None, 1e-5) if bias is None else F.layer_norm(x, (8,), eps=1e-5)
    on_gpu = with_gradients(_GroupedAffine.apply(normed, weight, bias, SEGMENTS), [x, weight, bias])
    for found in (on_cpu, on_gpu):
        for actual, wanted in zip(found, expected, strict=True):
            assert_close(actual, wanted, "float64")


def test_hooks_of_weights_are_called_where_a_layer_is_recomputed() -> None:
    """By such hooks, gradients of experts become those of a mean over processes."""
    x, weight, bias = inputs(torch.float32, bias=True)
    assert x is not None and weight is not None and bias is not None
    wanted = torch.autograd.grad(grouped_linear(x, weight, bias, SEGMENTS).sum(), [weight, bias])
    for parameter in (weight, bias):
        parameter.register_hook(lambda gradient: gradient / 2)
    checkpoint(lambda rows: grouped_linear(rows, weight, bias, SEGMENTS), x, use_reentrant=False).sum().backward()
    for parameter, gradient in zip((weight, bias), wanted, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient / 2)


def test_autocast_reaches_the_groups() -> None:
    x, weight = torch.randn(4, 8), torch.randn(2, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = grouped_linear(x, weight, None, Segments(torch.tensor([3, 1])))
    output.sum().backward()
    assert output.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32


class OnGpu:
    """What the choice asks of rows on a GPU."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, rows: int, dtype: torch.dtype):
        self.rows, self.dtype = rows, dtype

    def size(self, axis: int) -> int:
        return self.rows

    def element_size(self) -> int:
        return self.dtype.itemsize


@pytest.mark.parametrize(
    ("dtype", "width", "sizes", "capability", "chosen"),
    [
        (torch.bfloat16, 64, (3, 1), (9, 0), KERNEL),
        (torch.bfloat16, 64, (3, 1), (8, 0), BATCHED),
        (torch.bfloat16, 12, (3, 1), (9, 0), BATCHED),  # rows of 24 bytes
        (torch.float16, 64, (3, 1), (9, 0), BATCHED),
        (torch.float16, 64, (40, 0, 0, 1), (9, 0), LOOP),  # filling would quadruple it
        (torch.bfloat16, 64, (0, 0), (9, 0), LOOP),
    ],
)
def test_choice_on_a_gpu(
    dtype: torch.dtype,
    width: int,
    sizes: tuple[int, ...],
    capability: tuple[int, int],
    chosen: Products,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(grouped_products, "grouped_mm", lambda *_: None)
    rows = OnGpu(sum(sizes), dtype)
    segments = Segments(torch.tensor(sizes))
    assert products_for(rows, torch.empty(len(sizes), 32, width), segments) is chosen  # type: ignore[arg-type]


def test_cpus_multiply_in_a_loop() -> None:
    x, weight, _ = inputs(torch.float32, bias=False)
    assert x is not None and weight is not None
    assert products_for(x, weight, SEGMENTS) is LOOP
