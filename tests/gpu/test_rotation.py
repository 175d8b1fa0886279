"""The kernel that rotates queries and keys against the definition in float64, alone and in compiled code.

Without a GPU, Triton's interpreter runs it: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_rotation.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

pytest.importorskip("triton")

from tests.gpu.kernels import DEVICE, KERNELS_RUN
from tests.gpu.memory import poison
from tests.helpers import RELATIVE_ERROR_OF_KERNELS, assert_close
from torchscale_fairseq.core.layers.attention import MultiheadAttention
from torchscale_fairseq.core.layers.attention_inputs import AttentionInputs
from torchscale_fairseq.core.ops import xpos
from torchscale_fairseq.core.ops.xpos import rotate, rotate_both, xpos_tables

pytestmark = KERNELS_RUN
SHAPES = [(2, 63, 3, 32), (1, 50, 9, 256), (3, 1, 2, 20), (1, 77, 1, 432), (2, 5, 4, 2)]
TABLES = ["one", "of rows", "of heads", "of other tokens"]


@pytest.fixture(autouse=True)
def in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the kernel serves tensors of the CPU."""
    if DEVICE == "cpu":
        monkeypatch.setattr(xpos, "_has_kernel", lambda x, cos, sin: x.dtype in RELATIVE_ERROR_OF_KERNELS)
    else:
        poison()


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(DEVICE)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (found.double() - expected).norm() / expected.norm()
    assert error.item() < RELATIVE_ERROR_OF_KERNELS[dtype]


@pytest.mark.parametrize("to", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", RELATIVE_ERROR_OF_KERNELS, ids=str)
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(
    shape: tuple[int, ...], tables: str, dtype: torch.dtype, to: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are views of a wider projection."""
    batch, length, heads, head_dim = shape
    wide, gradient = drawn(batch, length, 3 * heads, head_dim).to(dtype), drawn(*shape).to(to)
    rows, table_heads = batch if tables == "of rows" else 1, heads if tables == "of heads" else 1
    cos, sin = drawn(2, rows, length, table_heads, head_dim // 2).unbind()
    others = (drawn(batch, length).abs() * length).long() % length if tables == "of other tokens" else None

    def results(x: Tensor, table: tuple[Tensor, Tensor], result: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        output = rotate(leaf[:, :, heads : 2 * heads], table, result, others)
        return output.detach(), torch.autograd.grad(output, leaf, gradient.to(result))[0]

    found = results(wide, (cos, sin), to)
    monkeypatch.setattr(xpos, "_has_kernel", lambda *_: False)
    expected = results(wide.double(), (cos.double(), sin.double()), torch.float64)
    assert found[0].dtype == to and found[1].dtype == dtype
    assert_near(found[0], expected[0], dtype if to == torch.float32 else to)
    assert_near(found[1], expected[1], dtype)


@pytest.mark.parametrize("dtype", RELATIVE_ERROR_OF_KERNELS, ids=str)
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_both_at_once(shape: tuple[int, ...], tables: str, dtype: torch.dtype) -> None:
    """One launch for queries and keys computes what one for each does, with tables as retention has them, and again for
    others of the same sizes."""
    for scale in (1, 2, 3):
        assert_both_at_once(shape, tables, dtype, scale)


def assert_both_at_once(shape: tuple[int, ...], tables: str, dtype: torch.dtype, scale: float) -> None:
    batch, length, heads, head_dim = shape
    query, key = (scale * drawn(2, batch, length, 2 * heads, head_dim)).to(dtype)[:, :, :, heads:].unbind()
    gradients = drawn(2, *shape).to(dtype).unbind()
    rows, table_heads = batch if tables == "of rows" else 1, heads if tables == "of heads" else 1
    (cos, sin), (key_cos, key_sin) = (drawn(2, rows, length, n, head_dim // 2).unbind() for n in (table_heads, 1))
    of_query, of_key = (cos, sin), (key_cos, key_sin)
    others = (drawn(batch, length).abs() * length).long() % length if tables == "of other tokens" else None
    leaves = [x.detach().requires_grad_() for x in (query, key)]
    both = rotate_both(leaves[0], leaves[1], of_query, of_key, dtype, others)
    alone = [rotate(x, table, dtype, others) for x, table in zip(leaves, (of_query, of_key), strict=True)]
    found, expected = (torch.autograd.grad(outputs, leaves, gradients) for outputs in (both, alone))
    for one, other in zip((*both, *found), (*alone, *expected), strict=True):
        assert torch.equal(one, other)


def test_both_at_once_in_compiled_code() -> None:
    query, key = drawn(2, 2, 9, 3, 8).bfloat16().unbind()
    cos, sin = drawn(2, 1, 9, 3, 4).unbind()
    leaves = [x.detach().requires_grad_() for x in (query, key)]

    def turn(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return rotate_both(query, key, (cos, sin), (cos[:, :, :1], sin[:, :, :1]), torch.bfloat16)

    results = []
    for form in (turn, torch.compile(turn, backend="aot_eager", fullgraph=True)):
        outputs = form(leaves[0], leaves[1])
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, (key, query))])
    for found, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(found, expected)


def test_gradient_of_any_layout() -> None:
    """Attention returns gradients with heads before tokens."""
    x = drawn(2, 7, 3, 8).bfloat16().requires_grad_()
    table = drawn(2, 1, 7, 1, 4).unbind()
    gradients = [drawn(2, 3, 7, 8).bfloat16().transpose(1, 2), drawn(2, 3, 8, 7).bfloat16().permute(0, 3, 1, 2)]
    for gradient in gradients:
        output = rotate(x, (table[0], table[1]), torch.bfloat16)
        found, expected = (
            torch.autograd.grad(output, x, g, retain_graph=True)[0] for g in (gradient, gradient.clone())
        )
        assert_close(found, expected, "float64")


def test_heads_far_apart(tmp_path: Path) -> None:
    """Offsets of heads need more than 32 bits."""
    apart = 1 << 30
    if DEVICE == "cpu":
        memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * apart + 12, dtype=torch.bfloat16)
    else:
        memory = torch.empty(2 * apart + 12, dtype=torch.bfloat16, device=DEVICE)
    x = memory.as_strided((1, 3, 3, 4), (12, 4, apart, 1)).copy_(drawn(1, 3, 3, 4))
    table = drawn(2, 1, 3, 1, 2).unbind()
    found, expected = (rotate(y, (table[0], table[1]), torch.bfloat16) for y in (x, x.contiguous()))
    assert_close(found, expected, "float64")


def test_compiled_attention() -> None:
    """Compiled code starts the kernel once for queries and once for keys, and as often on the way back."""
    torch.manual_seed(0)
    attention = MultiheadAttention(24, 3, backend="naive").to(DEVICE, torch.bfloat16)
    inputs = AttentionInputs(causal=True, xpos=tables_of(9, 8))
    starts: list[int] = []

    def count(graph: Any, _: Any) -> Any:
        starts.append(sum("torchscale_fairseq.rotate" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph)

    compiled = torch.compile(attention, backend=aot_autograd(fw_compiler=count, bw_compiler=count), fullgraph=True)
    x, gradient = (part.bfloat16() for part in drawn(2, 2, 9, 24))
    results = []
    for module in (attention, compiled):
        leaf = x.clone().requires_grad_()
        output = module(leaf, inputs)
        results.append((output.detach(), torch.autograd.grad(output, leaf, gradient)[0]))
    assert starts == [2, 2]
    for found, expected in zip(results[1], results[0], strict=True):
        assert_close(found, expected, "bfloat16")


def tables_of(length: int, head_dim: int) -> xpos.XPosTables:
    positions = torch.arange(length, device=DEVICE)[None]
    return xpos_tables(positions, head_dim, decay=True, scale_base=512, centre=0, span=length, dtype=torch.bfloat16)
