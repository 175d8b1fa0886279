"""The kernel of packed ternary weights against the definition in float64, alone and in a model.

Without a GPU, Triton's interpreter runs it: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_ternary_linear.py
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton")

from tests.core.models import decoder, tokens
from tests.gpu.kernels import DEVICE, KERNELS_RUN, on_a_gpu
from tests.gpu.memory import poison
from tests.helpers import assert_close
from torchscale_fairseq.core.layers import bit_linear
from torchscale_fairseq.core.layers.bit_linear import BitKind, PackedBitLinear, PackedWeight
from torchscale_fairseq.core.ops.quantization import LIMITS, RECIPES, pack, quantize_activations
from torchscale_fairseq.core.ops.ternary_linear import MOST_ROWS, TernaryLinear, has_kernel, ternary_linear

pytestmark = KERNELS_RUN
EPS = 1e-5
SHAPES = [  # rows, in, out
    (1, 1, 1),
    (2, 63, 5),
    (3, 500, 17),
    (16, 130, 8),
    (1, 2561, 9),
]


def far_from_halves(rows: int, width: int, largest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs and weights of RMSNorm whose products float32 and float64 round to equal whole numbers."""
    draw = torch.Generator().manual_seed(width)
    value = torch.randint(-126, 127, (rows, width), generator=draw).double()
    norm = 2.0 ** torch.randint(-1, 2, (width,), generator=draw).double()
    if dtype == torch.float32:
        value += 0.9 * torch.rand(rows, width, generator=draw) - 0.45
        norm = 0.5 + torch.rand(width, generator=draw).double()
    value[torch.arange(rows), torch.randint(width, (rows,), generator=draw)] = largest
    sizes = 2.0 ** torch.arange(rows)[:, None]
    return (value / norm * sizes / 256).to(dtype), norm.to(dtype)


def ternary(outputs: int, width: int) -> tuple[Tensor, Tensor]:
    """Whole numbers of a matrix, and their scale."""
    draw = torch.Generator().manual_seed(outputs)
    return torch.randint(-1, 2, (outputs, width), generator=draw).double(), torch.full((1, 1), 0.0625)


def by_definition(x: Tensor, norm: Tensor, values: Tensor, scale: Tensor, recipe: str) -> Tensor:
    """In float64."""
    normed = F.rms_norm(x.double(), x.shape[-1:], norm.double(), EPS)
    return F.linear(quantize_activations(normed, recipe).real(), values * scale)


def by_kernel(x: Tensor, norm: Tensor, values: Tensor, scale: Tensor, recipe: str) -> Tensor:
    if DEVICE == "cuda":
        poison()
    packed, scale = pack(values, "b1.58").to(DEVICE), scale.to(DEVICE, x.dtype)
    return ternary_linear(x.to(DEVICE), [TernaryLinear(norm.to(DEVICE), packed, scale)], EPS, recipe)[0].cpu()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width", "outputs"), SHAPES)
def test_values(rows: int, width: int, outputs: int, dtype: torch.dtype, recipe: str) -> None:
    x, norm = far_from_halves(rows, width, LIMITS[recipe][1], dtype)
    values, scale = ternary(outputs, width)
    found = by_kernel(x, norm, values, scale, recipe)
    assert found.dtype == dtype and found.shape == (rows, outputs)
    assert_close(found.double(), by_definition(x, norm, values, scale, recipe), str(dtype).removeprefix("torch."))


def test_many_outputs() -> None:
    """More than a program's smaller number of them serves."""
    x, norm = far_from_halves(1, 7, 127, torch.float32)
    values, scale = ternary(4100, 7)
    found = by_kernel(x, norm, values, scale, "faq")
    assert_close(found.double(), by_definition(x, norm, values, scale, "faq"), "float32")


@pytest.mark.parametrize("layers", [2, 3])
def test_layers_of_one_launch(layers: int) -> None:
    x, norm = far_from_halves(3, 63, 127, torch.float32)
    values = [ternary(9, 63)[0].roll(layer) for layer in range(layers)]
    given = [
        TernaryLinear(norm.to(DEVICE), pack(one, "b1.58").to(DEVICE), torch.full((1, 1), 0.5 + layer, device=DEVICE))
        for layer, one in enumerate(values)
    ]
    found = ternary_linear(x.to(DEVICE), given, EPS, "faq")
    for layer, one in enumerate(values):
        expected = by_definition(x, norm, one, torch.full((1, 1), 0.5 + layer), "faq")
        assert_close(found[layer].cpu().double(), expected, "float32")


def test_every_byte() -> None:
    """Each row of weights has one byte, and each column one input other than zero, in turn."""
    values = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 5)
    found = by_kernel(torch.eye(5), torch.ones(5), values, torch.ones(1, 1), "faq")
    assert torch.equal(found.sign(), values.T)


def test_rows_do_not_mix() -> None:
    """A row of zeros gives zeros, and one with a NaN or an infinity gives NaN, next to a row that is right."""
    x, norm = far_from_halves(4, 12, 127, torch.float32)
    x[0], x[1, 3], x[2, 5] = 0, torch.nan, torch.inf
    values, scale = ternary(6, 12)
    found = by_kernel(x, norm, values, scale, "faq")
    assert found[0].eq(0).all() and found[1:3].isnan().all()
    assert_close(found[3:].double(), by_definition(x[3:], norm, values, scale, "faq"), "float32")


def test_inputs_of_any_layout() -> None:
    x, norm = far_from_halves(6, 10, 127, torch.float32)
    values, scale = ternary(4, 10)
    expected = by_definition(x, norm, values, scale, "faq").view(2, 3, 4)
    assert_close(by_kernel(x.view(2, 3, 10), norm, values, scale, "faq").double(), expected, "float32")
    columns = x.T.contiguous().T
    assert not columns.is_contiguous()
    assert_close(by_kernel(columns, norm, values, scale, "faq").double(), expected.view(6, 4), "float32")


def layer() -> PackedBitLinear:
    """With random weights, in evaluation."""
    torch.manual_seed(0)
    found = PackedBitLinear(24, 7, BitKind("b1.58", "faq", EPS))
    contents = PackedWeight.contents(torch.randn(7, 24), "b1.58")
    found.load_state_dict({f"weight.{name}": content for name, content in contents.items()}, strict=False)
    return found.eval()


LAUNCHES = {False: [3, 1, 1, 1], True: [3, 1, 2, 1]}
"""Layers of each launch, by whether feed-forward networks are gated."""


@pytest.mark.parametrize("gated_ffn", LAUNCHES)
@torch.no_grad()
def test_a_model_uses_it(gated_ffn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs near the border of two whole numbers may be rounded to either."""
    model = decoder(bitnet="b1.58", bitnet_packed=True, gated_ffn=gated_ffn).to(DEVICE)
    target = tokens(2, 3).to(DEVICE)
    for name, buffer in model.named_buffers():
        if name.endswith(".packed"):
            buffer.random_(0, 243)
    calls: list[Any] = []

    def counted(*arguments: object) -> tuple[Tensor, ...]:
        calls.append(arguments)
        return ternary_linear(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bit_linear, "ternary_linear", counted)
    monkeypatch.setattr(bit_linear, "has_kernel", lambda *_: False)
    expected = model(target)[0]
    monkeypatch.setattr(bit_linear, "has_kernel", lambda *_: True)
    assert not calls
    assert_close(model(target)[0], expected, "bfloat16")
    layers = [len(arguments[1]) for arguments in calls]
    assert sum(layers) == sum(isinstance(module, PackedBitLinear) for module in model.modules())
    assert layers == LAUNCHES[gated_ffn] * len(model.layers)


@on_a_gpu
def test_what_it_serves() -> None:
    module, x = layer().cuda(), torch.randn(MOST_ROWS, 24, device="cuda")
    assert isinstance(module.norm, nn.RMSNorm)
    with torch.no_grad():
        assert has_kernel(x, module.norm.weight) and has_kernel(x.bfloat16())
        assert not has_kernel(x.cpu()) and not has_kernel(x.double()) and not has_kernel(x[:0])
        assert not has_kernel(torch.cat((x, x[:1])))
        with torch.autocast("cuda"):
            assert not has_kernel(x)
    assert not has_kernel(x, module.norm.weight)
    module(x.requires_grad_()).sum().backward()
    assert x.grad is not None


@on_a_gpu
@torch.no_grad()
def test_compiled_and_recorded() -> None:
    """Bit for bit as without."""
    module, x = layer().cuda().bfloat16(), torch.randn(3, 24, device="cuda", dtype=torch.bfloat16)
    expected = module(x)
    assert torch.equal(torch.compile(module, fullgraph=True)(x), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = module(x)
    x.copy_(-x)
    graph.replay()
    assert torch.equal(recorded, -expected)
