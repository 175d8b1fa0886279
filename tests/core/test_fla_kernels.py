"""Packed rows of RetNet by fla's kernels: the host starts them all without asking the device for anything.

Tensors are on the meta device, where asking for a value fails, and fla is replaced by functions that only make results
of the right shapes.
"""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchscale_fairseq import RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.ops import fla_kernels, retention_forms
from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.core.ops.retention_packing import CHUNK

LAYERS, HEADS, WIDTH = 2, 2, 32


class Kernel:
    """A kernel of Triton's, started as ``kernel[grid](...)``."""

    def __init__(self, names: str) -> None:
        self.arg_names = names.split()
        self.started: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Any:
        def start(**arguments: Any) -> None:
            assert set(arguments) <= set(self.arg_names)
            self.started.append({**arguments, "grid": grid({"BK": 64, "BV": 64})})

        return start


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Kernel, Kernel]]:
    """The two kernels of the states."""
    forward, backward = Kernel(fla_kernels._OF_STATES), Kernel(fla_kernels._OF_GRADIENTS)
    modules: dict[str, dict[str, Any]] = {
        "ops.common.chunk_h": {"chunk_fwd_kernel_h": forward, "chunk_bwd_kernel_dh": backward},
        "ops.common.chunk_o": {
            "chunk_fwd_o": lambda q, k, v, **_: torch.empty_like(v),
            "chunk_bwd_dqkwg": lambda q, k, **_: (torch.empty_like(q), torch.empty_like(k), None, None),
            "chunk_bwd_dv": lambda do, **_: torch.empty_like(do),
        },
        "ops.simple_gla.chunk": {"RCP_LN2": 1.0},
        "ops.utils.constant": {"RCP_LN2": 1.0},
        **{name: {} for name in ("", "ops", "ops.common", "ops.simple_gla", "ops.utils")},
    }
    for name, content in modules.items():
        module = ModuleType(f"fla.{name}".rstrip("."))
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(retention_forms, "_fla_refusal", lambda *_, **__: None)
    monkeypatch.setattr(fla_kernels, "tune_less", lambda: None)
    fla_kernels._are_known.cache_clear()
    yield forward, backward
    fla_kernels._are_known.cache_clear()


def build(**options: Any) -> RetNetDecoder:
    """A RetNet of two layers."""
    config = RetNetConfig(
        vocab_size=9,
        decoder_embed_dim=WIDTH,
        decoder_value_embed_dim=2 * WIDTH,
        decoder_retention_heads=HEADS,
        decoder_layers=LAYERS,
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
def test_no_layer_asks_the_device(kernels: tuple[Kernel, Kernel], padded: bool) -> None:
    """Padding is a document of its own."""
    starts = torch.zeros(2, 200, dtype=torch.bool)
    starts[0, 70] = starts[1, 128] = True
    train(starts, torch.arange(200) >= torch.tensor([[200], [128]]) if padded else None)
    chunks, documents = 2 + 3 + 2 + 2, 4  # of 70 and 130 tokens, and of 128 and 72
    state = (HEADS, WIDTH // HEADS, 2 * WIDTH // HEADS)
    forward, backward = kernels
    assert [start["h"].shape for start in forward.started] == [(1, chunks, *state)] * 2 * LAYERS
    assert [start["dh"].shape for start in backward.started] == [(1, chunks, *state)] * LAYERS
    for start in forward.started + backward.started:
        assert start["grid"] == (documents * HEADS,)
        assert (start["T"], start["BT"], len(start["split_offsets"])) == (400, CHUNK, documents + 1)


def test_rows_store_a_state_only_if_it_is_needed(kernels: tuple[Kernel, Kernel]) -> None:
    x, log_decay = torch.zeros(1, 9, 2, 4, dtype=torch.bfloat16), torch.tensor([-0.1, -0.2])
    for need_state in (True, False):
        _, state = retention_forms.retention(x, x, x, log_decay, need_state=need_state)
        assert (state is not None) == need_state
    assert [start["ht"] is not None for start in kernels[0].started] == [True, False]


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_compiled_layers_are_one_graph(
    kernels: tuple[Kernel, Kernel], packed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: stock(module, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    model, text, starts = build(compile=True).to(dtype), torch.zeros(2, 100, dtype=torch.long), None
    for first in (30, 60):
        if packed:
            starts = torch.arange(100).expand(2, -1) % first == first - 1
        model(text, document_starts=starts)[0].sum().backward()
    assert [len(kernel.started) for kernel in kernels] == [4 * LAYERS, 2 * LAYERS]


def test_kernels_with_other_arguments_are_left_to_fla(kernels: tuple[Kernel, Kernel]) -> None:
    assert fla_kernels.are_known()
    kernels[1].arg_names.append("more")
    fla_kernels._are_known.cache_clear()
    assert not fla_kernels.are_known()
