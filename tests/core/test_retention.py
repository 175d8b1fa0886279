"""The three forms of retention agree: outputs, states and gradients, padded, packed and continued."""

import re
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import assert_close, kept_for_backward, triple
from torchscale_fairseq.core.ops import fla_kernels, retention_forms
from torchscale_fairseq.core.ops.backend import log_choice
from torchscale_fairseq.core.ops.fla_tuning import CANDIDATES, tune_less
from torchscale_fairseq.core.ops.retention import chunkwise_retention, parallel_retention, recurrent_retention
from torchscale_fairseq.core.ops.retention_forms import CHUNKWISE_ABOVE, retention
from torchscale_fairseq.core.ops.retention_tables import log_decays, retention_tables, token_counts
from torchscale_fairseq.core.ops.xpos import rotate

KEY_DIM, VALUE_DIM = 8, 6


def inputs(
    batch: int, length: int, heads: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of norm about 1."""
    generator = torch.Generator().manual_seed(seed)
    dims = (KEY_DIM, KEY_DIM, VALUE_DIM)
    return triple((torch.randn(batch, length, heads, d, generator=generator) / d**0.5).to(dtype) for d in dims)


def masks(batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Padding and document boundaries anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "padding_mask": torch.rand(batch, length, generator=generator) < 0.3,
        "document_starts": torch.rand(batch, length, generator=generator) < 0.2,
    }


def written_out(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """The sum over earlier tokens, decayed by their distance (eq. 5)."""
    output = torch.zeros_like(value)
    for n in range(query.size(1)):
        for m in range(n + 1):
            decay = ((n - m) * log_decay).exp().view(1, -1, 1)
            output[:, n] += decay * (query[:, n] * key[:, m]).sum(-1, keepdim=True) * value[:, m]
    return output


def forms(chunk_size: int) -> dict:
    return {
        "recurrent": recurrent_retention,
        "parallel": parallel_retention,
        "chunkwise": lambda *tensors, **options: chunkwise_retention(*tensors, chunk_size=chunk_size, **options),
    }


def run(form, tensors: Sequence[Tensor], log_decay: Tensor, **options: Tensor) -> dict[str, Tensor]:
    """Output, state and the gradients of a sum of both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    state = options.pop("state", None)
    leaves += [] if state is None else [state.clone().requires_grad_()]
    q, k, v, *initial = leaves
    output, final = form(q, k, v, log_decay, **options, state=initial[0] if initial else None)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    padding = options.get("padding_mask")
    if padding is not None:
        output = output.masked_fill(padding[:, :, None, None], 0.0)
    ((output * weights).sum() + final.square().sum()).backward()
    found = {"output": output.detach(), "state": final.detach()}
    return found | {f"gradient {i}": x.grad for i, x in enumerate(leaves)}


def assert_forms_agree(tensors: Sequence[Tensor], chunk_size: int, tolerance: str, **options: Tensor) -> None:
    log_decay = log_decays(tensors[0].size(2), "powers")
    expected, *others = ((name, run(form, tensors, log_decay, **options)) for name, form in forms(chunk_size).items())
    for name, found in others:
        for what, value in found.items():
            assert_close(value, expected[1][what], tolerance, f"{what} of {name}")


def test_recurrent_form_is_the_sum() -> None:
    tensors, log_decay = inputs(2, 9, 3), log_decays(3, "linspace")
    assert_close(recurrent_retention(*tensors, log_decay)[0], written_out(*tensors, log_decay), "float64")


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_state_is_overwritten_only_where_allowed(overwrite: bool, gradients: bool) -> None:
    (q, k, v), log_decay = inputs(2, 3, 3), log_decays(3, "powers")
    given = torch.randn(2, 3, KEY_DIM, VALUE_DIM, dtype=torch.float64)
    expected = recurrent_retention(q, k, v, log_decay, state=given.clone())
    before = given.clone()
    with torch.set_grad_enabled(gradients):
        output, state = recurrent_retention(q, k, v, log_decay, state=given, overwrite_state=overwrite)
    for found, wanted in zip((output, state), expected, strict=True):
        assert_close(found, wanted, "float64")
    assert torch.equal(given, before) != (overwrite and not gradients)
    assert (state.data_ptr() == given.data_ptr()) == (overwrite and not gradients)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 50),
    chunk_size=st.integers(1, 60),
    heads=st.integers(1, 4),
    batch=st.integers(1, 3),
    masked=st.sets(st.sampled_from(["padding_mask", "document_starts"])),
    continued=st.booleans(),
    seed=st.integers(0, 9),
)
def test_forms_agree(
    length: int, chunk_size: int, heads: int, batch: int, masked: set[str], continued: bool, seed: int
) -> None:
    options = {name: mask for name, mask in masks(batch, length, seed).items() if name in masked}
    if continued:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, heads, KEY_DIM, VALUE_DIM)
        options["state"] = torch.randn(*shape, generator=generator, dtype=torch.float64)
    assert_forms_agree(inputs(batch, length, heads, seed=seed), chunk_size, "float64", **options)


@pytest.mark.parametrize("length", [1, 63, 64, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_forms_agree_in_float32(length: int, masked: bool) -> None:
    options = masks(2, length) if masked else {}
    assert_forms_agree(inputs(2, length, 2, torch.float32), 16, "float32", **options)


@pytest.mark.parametrize("cut", [1, 16, 29])
@pytest.mark.parametrize("form", forms(8))
def test_state_continues_a_sequence(form: str, cut: int) -> None:
    function, tensors, log_decay = forms(8)[form], inputs(2, 30, 2), log_decays(2, "powers")
    options = masks(2, 30)
    whole, final = function(*tensors, log_decay, **options)
    state, outputs = None, []
    for part in (slice(0, cut), slice(cut, None)):
        of_part = {name: mask[:, part] for name, mask in options.items()}
        output, state = function(*(x[:, part] for x in tensors), log_decay, **of_part, state=state)
        outputs.append(output)
    assert_close(torch.cat(outputs, 1), whole, "float64")
    assert_close(state, final, "float64", "state")


@pytest.mark.parametrize("form", forms(4))
def test_padding_and_packing_change_nothing(form: str) -> None:
    """Two sequences in one row, with padding before, between, inside and after, are what they are alone."""
    function, log_decay = forms(4)[form], log_decays(2, "powers")
    alone = [inputs(1, length, 2, seed=length) for length in (5, 7)]
    places = [[2, 3, 6, 7, 8], [9, 10, 12, 13, 14, 15, 17]]
    row = inputs(1, 20, 2, seed=99)
    padding_mask = torch.ones(1, 20, dtype=torch.bool)
    starts = torch.zeros(1, 20, dtype=torch.bool)
    for sequence, place in zip(alone, places, strict=True):
        padding_mask[0, place] = False
        starts[0, place[0]] = True
        for packed, own in zip(row, sequence, strict=True):
            packed[:, place] = own
    output, state = function(*row, log_decay, padding_mask=padding_mask, document_starts=starts)
    for sequence, place in zip(alone, places, strict=True):
        own, own_state = function(*sequence, log_decay)
        assert_close(output[:, place], own, "float64")
    assert_close(state, own_state, "float64", "state")


def test_longer_than_what_is_computed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchscale_fairseq.core.ops.retention._TOKENS_AT_A_TIME", 32)
    assert_forms_agree(inputs(2, 107, 2), 16, "float64", **masks(2, 107))


def test_gradient_of_the_decay() -> None:
    tensors = inputs(2, 20, 2)
    gradients = []
    for form in forms(8).values():
        log_decay = log_decays(2, "powers").requires_grad_()
        form(*tensors, log_decay)[0].square().sum().backward()
        gradients.append(log_decay.grad)
    assert_close(gradients[1], gradients[0], "float64")
    assert_close(gradients[2], gradients[0], "float64")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_lower_precision(dtype: torch.dtype) -> None:
    """Rounded inputs are all that is lost: inside, and in what comes back, it is float32, autocasting or not."""
    tensors, log_decay = inputs(2, 70, 2, dtype), log_decays(2, "powers")
    expected, _ = recurrent_retention(*(x.double() for x in tensors), log_decay)
    for name, form in forms(16).items():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            output, state = form(*tensors, log_decay)
        assert output.dtype == state.dtype == torch.float32
        assert_close(output.double(), expected, "float32", name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_long_sequences_stay_finite_and_keep_their_positions(dtype: torch.dtype) -> None:
    """At 16,384 tokens of the largest values that a norm lets through, rotated and scaled as in the layer."""
    length, log_decay = 16384, log_decays(2, "powers")
    counts = token_counts(length, torch.zeros(1, dtype=torch.long))
    tables = retention_tables(counts, log_decay, KEY_DIM, dtype=dtype, inclusive=False)
    exact = retention_tables(counts, log_decay, KEY_DIM, dtype=torch.float64, inclusive=False)
    assert tables.query[0].dtype == torch.float32
    assert (tables.key[0].double() - exact.key[0]).abs().max() < 1e-3
    query, key, value = (x * 50 for x in inputs(1, length, 2, dtype))
    output, state = chunkwise_retention(
        rotate(query, tables.query), rotate(key, tables.key), value, log_decay, chunk_size=128
    )
    assert output.isfinite().all() and state.isfinite().all()


def test_scores_share_one_scale() -> None:
    """The squared decays of what a token sees sum to at most 1, and a row of equal scores to its square root."""
    log_decay, counts = log_decays(4, "linspace"), token_counts(200, torch.zeros(1, dtype=torch.long))
    cos, sin = retention_tables(counts, log_decay, 2, dtype=torch.float64, inclusive=False).query
    scale = (cos.square() + sin.square()).sqrt()[0, :, :, 0]
    sums = torch.stack([(torch.arange(n)[:, None] * log_decay).exp().sum(0) for n in range(1, 201)])
    assert_close(scale, sums.rsqrt(), "float64")


def test_angles() -> None:
    """RoPE's by default, TorchScale's on request: 1 to 1 / 10000, exclusive or inclusive."""
    counts = torch.tensor([[2]])  # the second token has turned once
    for inclusive, last in ((False, 10000**-0.75), (True, 1e-4)):
        cos, sin = retention_tables(counts, log_decays(1, "powers"), 8, dtype=torch.float64, inclusive=inclusive).key
        angles = torch.atan2(sin, cos).flatten()
        assert angles[0].item() == pytest.approx(1) and angles[-1].item() == pytest.approx(last)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_token_counts(padded: bool, packed: bool) -> None:
    options = {name: m for name, m in masks(3, 40).items() if {"padding_mask": padded, "document_starts": packed}[name]}
    seen = torch.tensor([0, 3, 5])
    counts = token_counts(40, seen, **options).expand(3, -1)
    nothing = torch.zeros(3, 40, dtype=torch.bool)
    padding, starts = (options.get(name, nothing) for name in ("padding_mask", "document_starts"))
    for row in range(3):
        count = int(seen[row])
        for column in range(40):
            count = 0 if starts[row, column] else count
            count += not padding[row, column]
            assert counts[row, column] == count


def test_decays_of_the_paper() -> None:
    powers, linspace = (log_decays(8, kind).exp() for kind in ("powers", "linspace"))
    assert_close(powers[[0, 7]], torch.tensor([1 - 2**-5, 1 - 2**-12]).double(), "float64")
    assert_close(linspace[[0, 7]], torch.tensor([1 - 1 / 32, 1 - 1 / 512]).double(), "float64")
    assert (1 - log_decays(64, "powers").float().exp()[:20] > 0).all() and (log_decays(64, "powers").float() < 0).all()


@pytest.mark.parametrize(
    ("length", "chunkwise", "expected"),
    [
        (1, True, "recurrent"),
        (CHUNKWISE_ABOVE, False, "parallel"),
        (CHUNKWISE_ABOVE + 1, False, "chunkwise"),
        (2, True, "chunkwise"),
    ],
)
def test_choice_of_form(length: int, chunkwise: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for module, name in (("step", "recurrent"), ("forms", "parallel"), ("forms", "chunkwise")):
        where = f"torchscale_fairseq.core.ops.retention_{module}.{name}_retention"
        monkeypatch.setattr(where, lambda *_, name=name, **__: calls.append(name))
    retention(*inputs(1, length, 1), log_decays(1, "powers"), chunkwise=chunkwise)
    assert calls == [expected]


def test_what_the_fla_backend_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, it says why; left to choose, torch serves."""
    tensors, log_decay = inputs(2, 5, 1), log_decays(1, "powers")
    for installed, message in (
        (False, "pip install fla-core"),
        (True, "needs a GPU, not cpu; give retention_backend='auto'."),
    ):
        monkeypatch.setattr(retention_forms, "_HAS_FLA", installed)
        with pytest.raises(ValueError, match=f"retention_backend=fla .*{message}"):
            retention(*tensors, log_decay, backend="fla")
        assert torch.equal(retention(*tensors, log_decay)[0], parallel_retention(*tensors, log_decay)[0])


def on_gpu(dtype: torch.dtype) -> Any:
    """What the choice of a backend looks at in a tensor."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "major", "masks", "message"),
    [
        (torch.bfloat16, 9, (), None),
        (torch.float16, 8, (), None),
        (torch.float32, 9, (), r"fp16 or bf16, not torch.float32"),
        (torch.float16, 7, (), r"compute capability 8.0"),
        (torch.bfloat16, 9, ("padding_mask", "document_starts"), None),
    ],
)
def test_what_the_fla_backend_serves(
    dtype: torch.dtype, major: int, masks: tuple, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_forms, "_HAS_FLA", True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    monkeypatch.setattr(retention_forms, "_import_failure", lambda: None)
    retention_forms._capability.cache_clear()
    refusal = retention_forms._fla_refusal(on_gpu(dtype), **dict.fromkeys(masks, torch.ones(1, 1)), state=None)
    retention_forms._capability.cache_clear()
    assert (refusal is None) if message is None else re.search(message, refusal)


def test_a_broken_fla_is_said_and_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("fla")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "fla", package)
    retention_forms._import_failure.cache_clear()
    assert re.search(r"cannot be imported \(ModuleNotFoundError: .*fla.ops", retention_forms._import_failure() or "")
    retention_forms._import_failure.cache_clear()


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    log_choice.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            retention(*inputs(1, 3, 1), log_decays(1, "powers"))
    assert caplog.messages == ["retention backend: torch"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("value_dim", [VALUE_DIM, VALUE_DIM - 1], ids=["even", "odd"])
def test_what_the_fla_backend_is_given(dtype: torch.dtype, value_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's arguments, without the kernel: one dtype, even widths, no scale, states that float16 holds."""
    largest = []

    def kernel(q, k, v, *, g_gamma, scale, initial_state, output_final_state, cu_seqlens):
        assert scale == 1.0 and output_final_state and cu_seqlens is None and g_gamma.dtype == torch.float32
        assert q.dtype == k.dtype == v.dtype == dtype and v.size(-1) % 2 == 0
        assert initial_state is None or initial_state.dtype == torch.float32
        output, state = recurrent_retention(q, k, v, g_gamma, state=initial_state)
        largest.append(state.abs().max())
        return output.to(dtype), state

    monkeypatch.setattr(fla_kernels, "are_known", lambda: False)
    package = ModuleType("fla.ops.simple_gla")
    package.chunk_simple_gla = kernel  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    query, key, value = inputs(2, 9, 8, dtype)
    tensors, log_decay = [query.float(), key.float(), value[..., :value_dim]], log_decays(8, "powers")
    expected, state = recurrent_retention(*tensors, log_decay)
    first, half = retention_forms.fla_retention(*triple(x[:, :4] for x in tensors), log_decay)
    second, whole = retention_forms.fla_retention(*triple(x[:, 4:] for x in tensors), log_decay, state=half)
    assert first.dtype == dtype and whole.dtype == torch.float32 and whole.shape == state.shape
    assert_close(torch.cat((first, second), 1).float(), expected, str(dtype).removeprefix("torch."))
    assert_close(whole, state, "float32")
    assert (largest[-1] < state.abs().max() / 4) == (dtype == torch.float16)


def test_fla_is_tuned_over_few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only among its own; kernels of another kind or name are left alone."""
    tiles = [(bk, bv, warps, stages) for bk in (32, 64) for bv in (32, 64) for warps in (2, 4) for stages in (2, 3)]
    configs = [SimpleNamespace(kwargs={"BK": a, "BV": b}, num_warps=w, num_stages=s) for a, b, w, s in tiles]
    states, other = SimpleNamespace(configs=configs), SimpleNamespace(configs=configs[:1])
    chunks = SimpleNamespace(configs=[SimpleNamespace(kwargs={}, num_warps=w, num_stages=2) for w in (2, 4)])
    package = ModuleType("fla.ops.common")
    package.chunk_h = SimpleNamespace(  # type: ignore[attr-defined]
        chunk_fwd_kernel_h=SimpleNamespace(fn=states), chunk_bwd_kernel_dh=SimpleNamespace(fn=other)
    )
    package.chunk_o = SimpleNamespace(chunk_bwd_kernel_dv=SimpleNamespace(fn=chunks))  # type: ignore[attr-defined]
    for name, module in {"fla": ModuleType("fla"), "fla.ops": ModuleType("fla.ops"), package.__name__: package}.items():
        monkeypatch.setitem(sys.modules, name, module)
    tune_less.__wrapped__()
    kept = {(c.kwargs["BK"], c.kwargs["BV"], c.num_warps, c.num_stages) for c in states.configs}
    assert kept == set(CANDIDATES["chunk_fwd_kernel_h"]) & set(tiles) and 1 < len(kept) < 4
    assert [c.num_warps for c in chunks.configs] == [4]
    assert other.configs == configs[:1]


def test_one_table_for_all_rows() -> None:
    """It rotates as a table for each row does."""
    counts = token_counts(7, torch.zeros(1).long(), document_starts=torch.tensor([[0, 0, 1, 0, 0, 1, 0]] * 2).bool())
    counts[1, 3] = 0  # padding before the first token
    log_decay, x = log_decays(2, "powers"), torch.randn(2, 7, 2, 8, dtype=torch.float64)
    options: dict[str, Any] = {"dtype": torch.float64, "inclusive": False}
    own, shared = (retention_tables(counts, log_decay, 8, **options, largest=largest) for largest in (None, 7))
    assert own.rows is None and shared.query[0].size(0) == 1
    for name in ("query", "key"):
        found, expected = (rotate(x, getattr(tables, name), None, tables.rows) for tables in (shared, own))
        assert torch.equal(found, expected)


def test_chunk_size_is_checked() -> None:
    with pytest.raises(ValueError, match=r"chunk_size \(0\) must be at least 1"):
        chunkwise_retention(*inputs(1, 3, 1), log_decays(1, "powers"), chunk_size=0)


def test_memory_is_linear_in_the_length() -> None:
    """Bytes that the backward pass keeps: twice the length, twice the bytes."""

    def kept(length: int) -> int:
        tensors = [x.requires_grad_() for x in inputs(1, length, 2)]
        with kept_for_backward() as sizes:
            chunkwise_retention(*tensors, log_decays(2, "powers"), chunk_size=64)
        return sum(sizes)

    assert kept(8192) < 2.1 * kept(4096)
