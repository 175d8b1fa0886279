"""Decoding step by step equals the full forward, in every configuration, with padding, prompts and beams."""

from typing import Any

import pytest
import torch

from tests.core.decoding import mask_of, stepped
from tests.core.models import VARIANTS, decoder, encoder, encoder_decoder, tokens
from tests.helpers import assert_close
from torchscale_fairseq import Decoder
from torchscale_fairseq.core.layers import cache
from torchscale_fairseq.core.layers.cache import KeyValueCache, rows_of_groups

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_variant
@pytest.mark.parametrize("first", [1, 6])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_steps_match_full_forward(variant: str, first: int, padding: str) -> None:
    model = decoder(**VARIANTS[variant])
    target = tokens(3, 13)
    mask = None if padding == "none" else mask_of([13, 4, 9], 13, padding)
    full, _ = model(target, mask)
    real = torch.ones_like(target, dtype=torch.bool) if mask is None else ~mask
    assert full.isfinite().all()
    assert_close(stepped(model, target, first, mask)[real], full[real], "float32")


@every_variant
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_their_unpadded_selves(variant: str, side: str) -> None:
    lengths = [12, 5, 8]
    mask = mask_of(lengths, 12, side)
    target = tokens(3, 12)
    for model in (decoder(**VARIANTS[variant]), encoder(**VARIANTS[variant])):
        if isinstance(model, Decoder):
            padded, _ = model(target, mask)
        else:
            if VARIANTS[variant].get("torchscale_compatible") and side == "left":
                continue  # TorchScale's encoder counts padding
            padded = model(target, mask)["encoder_out"]
        for row, length in enumerate(lengths):
            own = target[row, ~mask[row]][None]
            alone = model(own)[0] if isinstance(model, Decoder) else model(own)["encoder_out"]
            assert_close(padded[row, ~mask[row]], alone[0], "float32", f"{type(model).__name__} row of {length}")


@every_variant
@torch.no_grad()
def test_prompts_of_different_lengths_continue(variant: str) -> None:
    """Right-padded prompts, then new tokens: padding stands inside the rows."""
    model = decoder(**VARIANTS[variant])
    lengths = [7, 3, 5]
    prompt, new = tokens(3, 7), tokens(3, 4, seed=1)
    prompt_mask = mask_of(lengths, 7, "right")
    state: dict[str, Any] = {}
    model(prompt, prompt_mask, incremental_state=state)
    steps = []
    for n in range(1, 5):  # the mask of the prompt is remembered
        steps.append(model(torch.cat((prompt, new[:, :n]), 1), incremental_state=state)[0])
    stepped_logits = torch.cat(steps, 1)
    for row, length in enumerate(lengths):
        alone, _ = model(torch.cat((prompt[row, :length], new[row]))[None])
        assert_close(stepped_logits[row], alone[0, length:], "float32", f"prompt of {length}")


@every_variant
@torch.no_grad()
def test_beams_share_their_sentence(variant: str) -> None:
    """Beams that move, and a sentence that ends, give what separate sequences give."""
    model = encoder_decoder(**VARIANTS[variant])
    source, beams = tokens(3, 9), 2
    source_mask = mask_of([9, 4, 6], 9, "left")
    encoder_out = model.encoder(source, source_mask)
    target = tokens(6, 1, seed=2)
    state: dict[str, Any] = {}
    rows_of_sentences = torch.arange(3).repeat_interleave(beams)
    moves = [[1, 0, 2, 2, 5, 4], [0, 1, 4, 5], [1, 1, 2, 3]]
    for step, move in enumerate([None, *moves]):
        if move is not None:
            order = torch.tensor(move)
            model.decoder.reorder_incremental_state(state, order)
            target, rows_of_sentences = target[order], rows_of_sentences[order]
            target = torch.cat((target, tokens(len(order), 1, seed=10 + step)), 1)
        logits, _ = model.decoder(target, encoder_out=encoder_out, incremental_state=state)
        own = {name: encoder_out[name][rows_of_sentences] for name in ("encoder_out", "encoder_padding_mask")}
        full, _ = model.decoder(target, encoder_out=own)
        assert_close(logits[:, -1], full[:, -1], "float32", f"step {step}")
    assert state["decoding_state"].layers[0].encoder_attn.batch_size == 2, "one row per sentence left"


@torch.no_grad()
def test_beams_may_leave_their_sentence() -> None:
    """An order that mixes sentences still decodes right, with one row per sequence."""
    model = encoder_decoder()
    encoder_out = model.encoder(tokens(2, 5))
    target = tokens(4, 3)
    state: dict[str, Any] = {}
    model.decoder(target[:, :2], encoder_out=encoder_out, incremental_state=state)
    order = torch.tensor([3, 0, 2, 1])
    model.decoder.reorder_incremental_state(state, order)
    logits, _ = model.decoder(target[order], encoder_out=encoder_out, incremental_state=state)
    own = {k: encoder_out[k][torch.tensor([1, 0, 1, 0])] for k in ("encoder_out", "encoder_padding_mask")}
    full, _ = model.decoder(target[order], encoder_out=own)
    assert_close(logits[:, -1], full[:, -1], "float32")


@torch.no_grad()
def test_memory_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder_decoder()
    encoder_out = model.encoder(tokens(2, 5))
    calls = []
    attention: Any = model.decoder.layers[0].encoder_attn
    attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    stepped(model.decoder, tokens(2, 9), 1, encoder_out=encoder_out)
    assert len(calls) == 1


@pytest.mark.parametrize("xpos", [True, False])
@torch.no_grad()
def test_xpos_moves_its_centre_along(xpos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far beyond the distance at which the cached keys are rescaled, steps still equal the full forward. Without xPos
    nothing is rescaled."""
    monkeypatch.setattr(cache, "_XPOS_RECENTRE_DISTANCE", 3)
    model = decoder(xpos_rel_pos=xpos, xpos_scale_base=8)
    target = tokens(2, 40)
    assert_close(stepped(model, target, 5), model(target)[0], "float32")


def test_cache_grows_by_doubling() -> None:
    store = KeyValueCache()
    buffers = set()
    new = torch.randn(2, 1, 3, 4)
    for _ in range(100):
        key, value = store.append(new, 2 * new)
        buffers.add(key.untyped_storage().data_ptr())
    assert len(buffers) <= 8
    assert key.shape == (2, 100, 3, 4)
    assert_close(key, new.expand(2, 100, 3, 4), "float64")
    assert_close(value, 2 * key, "float64")


@pytest.mark.parametrize(
    ("rows", "batch", "groups", "expected"),
    [
        ([1, 0, 2, 2], 4, 2, None),
        ([2, 3], 4, 2, [1]),
        ([3, 2, 1, 0], 4, 2, [1, 0]),
        ([0, 2, 1, 3], 4, 2, [0, 1, 0, 1]),
        ([0], 4, 2, [0]),
    ],
)
def test_rows_of_groups(rows: list[int], batch: int, groups: int, expected: list[int] | None) -> None:
    kept = rows_of_groups(torch.tensor(rows), batch, groups)
    assert (None if kept is None else kept.tolist()) == expected


def test_nothing_new_to_decode() -> None:
    model = decoder()
    state: dict[str, Any] = {}
    target = tokens(1, 3)
    model(target, incremental_state=state)
    with pytest.raises(ValueError, match="no token that incremental_state has not seen"):
        model(target, incremental_state=state)
