"""The kernel for retention of one token against the definition in float64, and its state after several tokens.

Without a GPU, Triton's interpreter runs it: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_retention_step.py
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.gpu.kernels import DEVICE, KERNELS_RUN
from tests.gpu.memory import poison
from tests.helpers import TOLERANCES
from torchscale_fairseq.core.ops import retention_step as module
from torchscale_fairseq.core.ops.retention import recurrent_retention
from torchscale_fairseq.core.ops.retention_forms import retention
from torchscale_fairseq.core.ops.retention_tables import RetentionTables, log_decays, retention_tables

pytestmark = KERNELS_RUN
SHAPES = [(3, 2, 32, 54), (1, 3, 256, 432), (2, 1, 20, 7), (2, 5, 2, 1), (1, 2, 1024, 20)]
"""(batch, heads, key_dim, value_dim)."""
TOKENS = 4


@pytest.fixture(autouse=True)
def in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the kernel serves tensors of the CPU, except for the definition's in float64."""
    if DEVICE == "cpu":
        monkeypatch.setattr(module, "_has_kernel", lambda inputs, *_: inputs[0].dtype != torch.float64)
    else:
        poison()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def tables_of(counts: Tensor, key_dim: int, log_decay: Tensor) -> tuple[RetentionTables, RetentionTables]:
    """Those of a model in half precision, and the same numbers in float64."""
    tables = retention_tables(counts[:, None], log_decay, key_dim, dtype=torch.float16, inclusive=False)
    query, key = ((cos.double(), sin.double()) for cos, sin in (tables.query, tables.key))
    return tables, RetentionTables(query, key)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Inputs are exact in both, so that only float32's rounding differs."""
    assert found.dtype == torch.float32
    assert ((found.double() - expected).norm() / expected.norm()).item() < TOLERANCES["float32"].rtol


@pytest.mark.parametrize("given", [False, True], ids=["from zeros", "from a state"])
@pytest.mark.parametrize("tables", ["none", "of all rows", "of each row"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_equals_the_definition(shape: tuple[int, ...], dtype: torch.dtype, tables: str, given: bool) -> None:
    """Several tokens, whose queries, keys and values are views of a wider projection. The state stays where it is."""
    batch, heads, key_dim, value_dim = shape
    log_decay = log_decays(heads, "powers", torch.device(DEVICE)).float()
    counts = torch.tensor([7, 1, 4000], device=DEVICE)[: batch if tables == "of each row" else 1]
    wide = drawn(TOKENS, batch, 1, heads, 2 * key_dim + value_dim).to(dtype)
    state = drawn(batch, heads, key_dim, value_dim, seed=1) if given else None
    exact = None if state is None else state.double()
    places = set()
    for step, token in enumerate(wide):
        query, key, value = token.split((key_dim, key_dim, value_dim), -1)
        rotations = (None, None) if tables == "none" else tables_of(counts + step, key_dim, log_decay)
        output, state = retention(
            query, key, value, log_decay, rotation=rotations[0], state=state, overwrite_state=True
        )
        wide_query, wide_key, wide_value = query.double(), key.double(), value.double()
        expected, exact = retention(
            wide_query, wide_key, wide_value, log_decay.double(), rotation=rotations[1], state=exact
        )
        assert state is not None and exact is not None
        assert output.shape == (batch, 1, heads, value_dim)
        assert_near(output, expected)
        assert_near(state, exact)
        places.add(state.data_ptr())
    assert len(places) == 1


@torch.no_grad()
def test_keeps_a_state_that_is_not_to_be_overwritten() -> None:
    query, key, value = (drawn(2, 1, 3, width).half() for width in (8, 8, 12))
    log_decay, state = log_decays(3, "powers", torch.device(DEVICE)).float(), drawn(2, 3, 8, 12)
    before = state.clone()
    output, after = retention(query, key, value, log_decay, state=state)
    assert after is not None
    expected = recurrent_retention(
        query.double(), key.double(), value.double(), log_decay.double(), state=state.double()
    )
    assert torch.equal(state, before)
    assert_near(output, expected[0])
    assert_near(after, expected[1])


@torch.no_grad()
def test_slow_decays_keep_a_state() -> None:
    """Over thousands of tokens of nothing: an error of a decay grows with their number."""
    heads, tokens = 8, 2048
    query, key, value = (torch.zeros(1, 1, heads, width, device=DEVICE).half() for width in (2, 2, 1))
    log_decay = log_decays(heads, "powers", torch.device(DEVICE))
    state: Tensor | None = torch.ones(1, heads, 2, 1, device=DEVICE)
    steps = 8 if DEVICE == "cpu" else tokens
    for _ in range(steps):
        _, state = retention(query, key, value, log_decay.float(), state=state, overwrite_state=True)
    assert state is not None
    expected = (log_decay * steps).exp().view(1, -1, 1, 1).expand(1, heads, 2, 1)
    torch.testing.assert_close(state.double(), expected, rtol=steps * 2**-23, atol=0)
