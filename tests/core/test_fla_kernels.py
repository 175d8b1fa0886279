"""Packed rows of RetNet by fla's kernels: the host starts them all without asking the device for anything.

Tensors are on the meta device, where asking for a value fails, and fla's kernels are replaced by some that do nothing.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.helpers import assert_close
from torchscale_fairseq import RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.ops import fla_kernels, fla_launches, quick_launch, retention_forms
from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.core.ops.fla_launches import Sizes, tile_of_states
from torchscale_fairseq.core.ops.fla_tuning import SIDES_OF_CHUNKS
from torchscale_fairseq.core.ops.masks import know_padding
from torchscale_fairseq.core.ops.positions import padding_of
from torchscale_fairseq.core.ops.quick_launch import Repeats
from torchscale_fairseq.core.ops.retention_packing import CHUNK

LAYERS, HEADS, WIDTH = 2, 2, 32


class Kernel:
    """A kernel of Triton's, started as ``kernel[grid](...)``."""

    def __init__(self, names: str) -> None:
        self.arg_names = names.split()
        self.started: list[dict[str, Any]] = []
        self.compiled: Any = None
        """What a start returns."""

    def __getitem__(self, grid: Any) -> Any:
        def start(**arguments: Any) -> Any:
            tile = {"BK": 64, "BV": 64, **arguments}
            assert set(tile) - {"num_warps", "num_stages"} == set(self.arg_names)
            self.started.append({**tile, "grid": grid(tile) if callable(grid) else grid})
            return self.compiled

        return start


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Kernel]]:
    """fla's by name."""
    made = {name: Kernel(names) for name, names in fla_launches.ARGUMENTS.items()}
    modules: dict[str, dict[str, Any]] = {
        "ops.common.chunk_h": dict(made),
        "ops.simple_gla.chunk": {"RCP_LN2": 1.0},
        "utils": {"check_shared_mem": lambda *_: True},
        **{name: {} for name in ("", "ops", "ops.common", "ops.common.chunk_o", "ops.simple_gla")},
    }
    for name, content in modules.items():
        module = ModuleType(f"fla.{name}".rstrip("."))
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(retention_forms, "_fla_refusal", lambda *_, **__: None)
    fla_launches.kernels.cache_clear()
    monkeypatch.setattr(fla_launches, "_CHOSEN", {})
    monkeypatch.setattr(fla_launches, "_REPEATS", Repeats())
    yield made
    fla_launches.kernels.cache_clear()


def build(layers: int = LAYERS, **options: Any) -> RetNetDecoder:
    """A small RetNet."""
    config = RetNetConfig(
        vocab_size=9,
        decoder_embed_dim=WIDTH,
        decoder_value_embed_dim=2 * WIDTH,
        decoder_retention_heads=HEADS,
        decoder_layers=layers,
        **options,
    )
    return RetNetDecoder(config)


def train(starts: Tensor, padding: Tensor | None = None) -> None:
    """A forward and backward pass of a RetNet on the meta device, in bfloat16, over packed rows that the host knows."""
    model = build().to("meta", torch.bfloat16)
    known = note_documents(starts.to("meta"), Documents.of(starts).to(torch.device("meta")))
    tokens = torch.zeros(starts.shape, dtype=torch.long, device="meta")
    padding = None if padding is None else padding.to("meta")
    model(tokens, document_starts=known, self_attn_padding_mask=padding)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.layers.parameters())


@pytest.mark.parametrize("padded", [False, True])
def test_no_layer_asks_the_device(kernels: dict[str, Kernel], padded: bool) -> None:
    """Padding is a document of its own, and no token is moved."""
    starts = torch.zeros(2, 200, dtype=torch.bool)
    starts[0, 70] = starts[1, 128] = True
    train(starts, torch.arange(200) >= torch.tensor([[200], [128]]) if padded else None)
    chunks, documents = 2 + 3 + 2 + 2, 4  # of 70 and 130 tokens, and of 128 and 72
    state = (HEADS, WIDTH // HEADS, 2 * WIDTH // HEADS)
    forward, backward, *others = (kernel.started for kernel in kernels.values())
    assert [start["h"].shape for start in forward] == [(1, chunks, *state)] * LAYERS
    assert [start["dh"].shape for start in backward] == [(1, chunks, *state)] * LAYERS
    assert {start[name].dtype for start in forward + backward for name in {"h", "dh"} & set(start)} == {torch.bfloat16}
    for start in forward + backward:
        assert start["grid"] == (documents * HEADS,)
        assert (start["T"], start["BT"], len(start["split_offsets"])) == (400, CHUNK, documents + 1)
    for start in itertools.chain(*others):
        assert start["grid"] == (chunks, HEADS)
        assert (len(start["chunk_indices"]), start["q"].shape) == (chunks, (2, 200, HEADS, WIDTH // HEADS))
    assert [len(started) for started in others] == [LAYERS] * 3


def operators_of_a_layer(**options: Any) -> Counter[str]:
    """What torch is called for in the forward and backward pass of each layer."""
    counts = []
    for layers in (1, 3):
        model, text = build(layers=layers).to(torch.bfloat16), torch.zeros(2, 100, dtype=torch.long)
        states: dict[str, Any] = {"incremental_state": {}} if options.get("prompt") else {}
        given = {name: mask for name, mask in options.items() if name != "prompt"}
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            model(text, **given, **states)[0].sum().backward()
        counts.append(Counter(event.name for event in recorded.events() if event.name.startswith("aten::")))
    return counts[1] - counts[0]


def test_layers_do_no_more_than_for_rows_without_padding_and_documents(kernels: dict[str, Kernel]) -> None:
    """The host, which has to start all operations, starts the same ones."""
    token = torch.arange(100).expand(2, -1)
    known, rows = note_documents(token % 30 == 0, Documents.of(token % 30 == 0)), operators_of_a_layer()
    assert rows["aten::mm"] > 0
    assert operators_of_a_layer(document_starts=known) == rows
    assert operators_of_a_layer(self_attn_padding_mask=token < 50) == rows


@pytest.mark.parametrize("prompt", [False, True])
def test_layers_share_where_sequences_lie(kernels: dict[str, Kernel], prompt: bool) -> None:
    """Padding within rows, or before a state that is kept, is looked for once per forward pass."""
    of_each = operators_of_a_layer(self_attn_padding_mask=torch.arange(100).expand(2, -1) == 50, prompt=prompt)
    assert not {"aten::unique_consecutive", "aten::nonzero", "aten::_local_scalar_dense"} & set(of_each)


class Compiled:
    """Code that Triton compiled, started as ``compiled[grid](...)``."""

    packed_metadata = ()

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *values: self.started.append((grid, *values))


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_requests_of_the_same_sizes_start_again(
    kernels: dict[str, Kernel], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With addresses in the places of the tensors, and all else as at first."""
    monkeypatch.setattr(quick_launch, "_compiled", {})
    monkeypatch.setattr(quick_launch, "_takes_all_arguments", lambda: True)
    monkeypatch.setattr(fla_launches, "_CHOSEN", {(torch.bfloat16, torch.device("cpu"), (2, 4, 6)): {"BK": 4, "BV": 2}})
    for kernel in kernels.values():
        kernel.compiled = Compiled()
    log_decay, starts = torch.tensor([-0.1, -0.2]), torch.arange(9).expand(2, -1) % 4 == 0
    known = note_documents(starts, Documents.of(starts)) if packed else None
    for _ in range(2):
        q, k, v = (torch.zeros(2, 9, 2, width, dtype=torch.bfloat16, requires_grad=True) for width in (4, 4, 6))
        given, state = {"q": q, "k": k, "v": v}, torch.zeros(2, 2, 4, 6, requires_grad=True)
        output, after = retention_forms.retention(q, k, v, log_decay, state=state, document_starts=known)
        assert after is not None
        (output.sum() + after.sum()).backward()
    for kernel in kernels.values():
        (first,), ((grid, *values),) = kernel.started, kernel.compiled.started
        assert grid == (*first["grid"], 1, 1)
        for name, value in zip(kernel.arg_names, values, strict=True):
            if isinstance(first[name], Tensor):
                assert value % 16 == 0 and (name not in given or value == given[name].data_ptr())
            else:
                assert value == first[name]


def test_layers_share_their_decays(kernels: dict[str, Kernel]) -> None:
    """Logarithms to the base that the kernels take are computed once, and again only if decays change."""
    train(torch.arange(100).expand(2, -1) == 0)
    assert len({id(start["g_gamma"]) for kernel in kernels.values() for start in kernel.started}) == 1
    kernel, x, log_decay = kernels["chunk_fwd_kernel_h"], torch.zeros(1, 9, 2, 4, dtype=torch.bfloat16), -torch.ones(2)
    for factor in (1, 2):
        retention_forms.retention(x, x, x, log_decay.mul_(factor))
        assert_close(kernel.started[-1]["g_gamma"].exp2(), log_decay.exp(), "float32")


def test_decays_of_inference_serve_a_later_training(kernels: dict[str, Kernel]) -> None:
    x, log_decay = torch.zeros(1, 9, 2, 4, dtype=torch.bfloat16), -torch.ones(2)
    with torch.inference_mode():
        retention_forms.retention(x, x, x, log_decay)
        given = log_decay.clone()
    for decays in (log_decay, given):
        retention_forms.retention(x, x, x.clone().requires_grad_(), decays)
    assert len(kernels["chunk_fwd_kernel_h"].started) == 3


def test_padding_at_the_ends_of_rows_is_left_in_them(kernels: dict[str, Kernel]) -> None:
    """The kernels are started as for rows without padding, and the device is not asked."""
    token = torch.arange(200)
    mask = (token < torch.tensor([[30], [0]])) | (token >= torch.tensor([[150], [190]]))
    model, text = build().to("meta", torch.bfloat16), torch.zeros(2, 200, dtype=torch.long, device="meta")
    model(text, self_attn_padding_mask=know_padding(mask.to("meta"), padding_of(mask)))[0].sum().backward()
    for kernel in kernels.values():
        assert [(start["cu_seqlens"], start["IS_VARLEN"]) for start in kernel.started] == [(None, False)] * LAYERS


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
def test_states_that_take_much_memory(kernels: dict[str, Kernel], kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed again in the backward pass, and others are not."""
    size = 2 * 2 * HEADS * (WIDTH // HEADS) * (2 * WIDTH // HEADS) * 2  # of two rows with two chunks, in bytes
    monkeypatch.setattr(fla_kernels, "LARGEST_KEPT", size if kept else size - 1)
    train(torch.arange(100).expand(2, -1) == 0)
    assert len(kernels["chunk_fwd_kernel_h"].started) == (LAYERS if kept else 2 * LAYERS)
    for start in kernels["chunk_bwd_kernel_dqkwg"].started:
        assert start["h"].shape == (1, 4, HEADS, WIDTH // HEADS, 2 * WIDTH // HEADS)


def test_a_tuned_tile_is_kept(kernels: dict[str, Kernel]) -> None:
    """The tuner, which costs the host time, is asked once for each size of heads."""

    class Config:
        """Settings as Triton's tuner reports them."""

        def all_kwargs(self) -> dict[str, int]:
            return {"BK": 32, "BV": 32, "num_warps": 2, "num_stages": 3}

    tuner = Kernel(fla_launches.ARGUMENTS["chunk_fwd_kernel_o"])
    tuner.best_config = Config()  # type: ignore[attr-defined]
    found = fla_launches.kernels()
    assert found is not None
    found["tuner"] = tuner
    log_decay = torch.tensor([-0.1, -0.2])
    for width in (4, 4, 8, 4):
        x = torch.zeros(1, 9, 2, width, dtype=torch.bfloat16)
        retention_forms.retention(x, x, x, log_decay)
    started = kernels["chunk_fwd_kernel_o"].started
    assert [start["K"] for start in tuner.started] == [4, 8]
    assert [(start["K"], start["BK"], start["num_warps"]) for start in started] == [(4, 32, 2)] * 2


def test_rows_store_a_state_only_if_it_is_needed(kernels: dict[str, Kernel]) -> None:
    x, log_decay = torch.zeros(1, 9, 2, 4, dtype=torch.bfloat16), torch.tensor([-0.1, -0.2])
    for need_state in (True, False):
        _, state = retention_forms.retention(x, x, x, log_decay, need_state=need_state)
        assert (state is not None) == need_state
    started = kernels["chunk_fwd_kernel_h"].started
    assert [start["ht"] is not None for start in started] == [True, False]
    assert [start["STORE_FINAL_STATE"] for start in started] == [True, False]


def test_small_tiles_only_where_there_are_few_states() -> None:
    """So that every processor of the GPU has a program, whatever ran first."""
    found = {}
    for rows in (1, 2, 4, 16):
        sizes = Sizes(rows, 1024, 16, rows, (3, 256, 512))
        programs, tile = tile_of_states(sizes, processors=132)
        found[rows] = programs, tile["BK"], tile["BV"]
    assert found == {1: (192, 32, 64), 2: (192, 64, 64), 4: (384, 64, 64), 16: (1536, 64, 64)}
    assert tile_of_states(Sizes(1, 64, 1, 1, (1, 32, 32)), processors=132)[0] == 1


def test_tiles_of_gradients(kernels: dict[str, Kernel]) -> None:
    """They cover narrow heads and fit the shared memory."""
    for arch, largest in (("hopper", 128), ("ada", 64), ("none", 32)):
        sys.modules["fla.utils"].check_shared_mem = lambda which, _, arch=arch: which == arch  # type: ignore[attr-defined]
        fla_launches.tile_of_chunks.cache_clear()
        for name, sides in SIDES_OF_CHUNKS.items():
            for key_dim, value_dim in ((256, 432), (20, 6)):
                tile = fla_launches.tile_of_chunks(name, key_dim, value_dim, 0)
                wanted = tuple(min(side, largest) for side in sides) if key_dim > 20 else (32, 16)
                assert (tile["BK"], tile["BV"]) == wanted
    fla_launches.tile_of_chunks.cache_clear()


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_compiled_layers_are_one_graph(
    kernels: dict[str, Kernel], packed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: stock(module, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    model, text, starts = build(compile=True).to(dtype), torch.zeros(2, 100, dtype=torch.long), None
    for first in (30, 60):
        if packed:
            starts = torch.arange(100).expand(2, -1) % first == first - 1
        model(text, document_starts=starts)[0].sum().backward()
    assert [len(kernel.started) for kernel in kernels.values()] == [2 * LAYERS] * 5


@pytest.mark.parametrize("name", fla_launches.ARGUMENTS)
def test_kernels_with_other_arguments_are_left_to_fla(kernels: dict[str, Kernel], name: str) -> None:
    assert fla_kernels.are_known()
    kernels[name].arg_names.append("more")
    fla_launches.kernels.cache_clear()
    assert not fla_kernels.are_known()
