"""Padding, documents and a state in the kernel of flash-linear-attention: equal to float64, without waiting.

Without a GPU, Triton's interpreter runs it: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_retention_packing.py
"""

import builtins
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.kernels import DEVICE, KERNELS_RUN, on_a_gpu
from torchscale_fairseq import RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.ops import fla_kernels, fla_launches, retention_forms
from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.core.ops.fla_launches import ARGUMENTS
from torchscale_fairseq.core.ops.retention import parallel_retention
from torchscale_fairseq.core.ops.retention_forms import retention
from torchscale_fairseq.core.ops.retention_tables import log_decays

pytestmark = KERNELS_RUN
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
BOUND = 2e-2
"""Relative RMS error of bfloat16, as for the kernel without padding."""
BOUND_OF_MODELS = 0.15
"""Relative RMS error of logits and gradients of a model in bfloat16, as without packing."""
LENGTH = 300
NAMES = ("output", "state", "query", "key", "value", "state before")


class _Counter(int):
    """An index of a loop as compiled kernels have it; the interpreter's lack the method."""

    def to(self, _: Any) -> "_Counter":
        return self


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """fla's kernels; those of the interpreter are not tuned."""
    pytest.importorskip("fla.ops.simple_gla")
    if DEVICE == "cpu":
        from fla.ops.common import chunk_h, chunk_o

        for module in (chunk_h, chunk_o):
            for name in ARGUMENTS:
                tuner = getattr(getattr(module, name, None), "fn", None)
                if tuner is not None:
                    monkeypatch.setattr(tuner, "configs", tuner.configs[-1:])
            counted = lambda *ends: map(_Counter, builtins.range(*map(int, ends)))  # noqa: E731
            monkeypatch.setattr(module, "range", counted, raising=False)
        monkeypatch.setattr(retention_forms, "_fla_refusal", lambda *_, **__: None)
    yield
    fla_launches.kernels.cache_clear()


def masks(kind: str) -> dict[str, Tensor]:
    token = torch.arange(LENGTH, device=DEVICE)
    left = token < torch.tensor([[0], [37], [LENGTH]], device=DEVICE)
    little = token >= torch.tensor([[LENGTH], [250], [LENGTH]], device=DEVICE)
    starts = (token == torch.tensor([[150], [64], [3]], device=DEVICE)) | (token == 200)
    return {
        "left padding": {"padding_mask": left},
        "right padding": {"padding_mask": left.flip(1)},
        "documents": {"document_starts": starts},
        "little padding": {"padding_mask": little},
        "both": {"padding_mask": left, "document_starts": starts},
    }[kind]


def results(
    backend: str, dtype: torch.dtype, options: dict[str, Any], widths: tuple[int, int] = (64, 128), seed: int = 0
) -> list[Tensor]:
    """Output, state and gradients of real tokens, for heads of these widths of keys and values."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    keys, values = widths
    shapes = [(3, LENGTH, 4, keys), (3, LENGTH, 4, keys), (3, LENGTH, 4, values), (3, 4, keys, values)]
    drawn = [torch.randn(s, generator=generator, device=DEVICE).bfloat16() / 8 for s in shapes]
    query, key, value, state = (x.to(dtype).requires_grad_() for x in drawn)
    log_decay = log_decays(4, "powers", torch.device(DEVICE))
    if backend == "exact":
        output, after = parallel_retention(query, key, value, log_decay.double(), state=state, **options)
    else:
        output, after = retention(query, key, value, log_decay.float(), backend=backend, state=state, **options)
    if "padding_mask" in options:
        output = output.masked_fill(options["padding_mask"][..., None, None], 0.0)
    loss = (output * torch.linspace(-1, 1, LENGTH, device=DEVICE).view(1, -1, 1, 1)).sum() + after.sum()
    return [output.detach(), after.detach(), *torch.autograd.grad(loss, (query, key, value, state))]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for name, actual, expected in zip(NAMES, found, wanted, strict=True):
        error = (actual.double() - expected).norm() / expected.norm().clamp(min=1e-9)
        assert error < BOUND, f"{name}: relative RMS error {error}"


@pytest.mark.parametrize("kind", ["left padding", "right padding", "little padding", "documents", "both"])
def test_equals_float64(kind: str) -> None:
    assert fla_kernels.are_known(), "the installed fla has other kernels: its own function, which waits, is used"
    options = masks(kind)
    assert_equal(results("fla", DTYPE, options), results("exact", torch.float64, options))


def test_states_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward pass, since they take much memory."""
    monkeypatch.setattr(fla_kernels, "LARGEST_KEPT", 0)
    options = masks("documents")
    assert_equal(results("fla", DTYPE, options), results("exact", torch.float64, options))


@on_a_gpu
def test_started_again() -> None:
    """By what was compiled and launched for other tensors of the same sizes."""
    options = masks("documents")
    for seed in range(3):
        found = results("fla", DTYPE, options, seed=seed)
        assert_equal(found, results("exact", torch.float64, options, seed=seed))


@on_a_gpu
@pytest.mark.parametrize("widths", [(256, 432), (256, 512), (128, 256)], ids=str)
def test_wide_heads(widths: tuple[int, int]) -> None:
    """Those of the published sizes, whose tiles are others: compilers have made wrong code of some on Hopper GPUs."""
    options = masks("documents")
    assert_equal(results("fla", DTYPE, options, widths), results("exact", torch.float64, options, widths))


def test_kernels_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """fla's own function starts them."""
    monkeypatch.setitem(ARGUMENTS, "chunk_fwd_kernel_h", "others")
    fla_launches.kernels.cache_clear()
    assert not fla_kernels.are_known()
    options = masks("documents")
    assert_equal(results("fla", DTYPE, options), results("exact", torch.float64, options))


@on_a_gpu
def test_does_not_wait_for_the_device() -> None:
    starts = masks("documents")["document_starts"]
    query, key, value = (torch.randn(3, LENGTH, 4, 64, device=DEVICE, dtype=DTYPE, requires_grad=True) for _ in "qkv")
    log_decay = log_decays(4, "powers", torch.device(DEVICE)).float()

    def update() -> None:
        known = note_documents(starts.clone(), documents)
        output, _ = retention(query, key, value, log_decay, backend="fla", need_state=False, document_starts=known)
        output.sum().backward()

    documents = Documents.of(starts.cpu()).to(torch.device(DEVICE))
    update()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.parametrize("kind", ["rows", "documents", "left padding", "right padding"])
@pytest.mark.parametrize("compiled", [False, True])
def test_models(compiled: bool, kind: str) -> None:
    """Logits of real tokens and gradients, also by an operator that torch.compile leaves alone."""
    torch.manual_seed(0)
    config = RetNetConfig(
        vocab_size=40, decoder_embed_dim=128, decoder_value_embed_dim=256, decoder_layers=2, decoder_retention_heads=2
    )
    exact = RetNetDecoder(replace(config, retention_backend="torch")).double().to(DEVICE)
    fast = RetNetDecoder(replace(config, compile=compiled, retention_backend="fla")).to(DEVICE, DTYPE)
    fast.load_state_dict(exact.state_dict())
    text, results = torch.randint(4, 40, (3, LENGTH), device=DEVICE), []
    given = {} if kind == "rows" else masks(kind)
    padding = given.pop("padding_mask", None)
    for model in (exact, fast):
        logits, _ = model(text, self_attn_padding_mask=padding, **given)
        if padding is not None:
            logits = logits.masked_fill(padding.unsqueeze(-1), 0.0)
        logits.double().square().mean().backward()
        results.append((logits.double(), torch.cat([p.grad.flatten().double() for p in model.parameters()])))
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() / expected.norm() < BOUND_OF_MODELS
