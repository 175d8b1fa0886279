"""Encoder, decoder and encoder-decoder equal the official ones under ``torchscale_compatible``."""

from typing import Any

import pytest
import torch

from tests.helpers import assert_close
from tests.parity.longnet import shifted_from, whole_until
from tests.parity.models import (
    decoder_outputs,
    encoder_decoder_outputs,
    encoder_outputs,
    incremental_logits,
    loaded,
)
from tests.parity.vectors import Case, cases, check_loss_and_gradients, compare, ids

NOT_HERE = ("moe",)
ENCODERS = cases("enc_*", without=(*NOT_HERE, "incremental"))
DECODERS = cases("dec_*", without=(*NOT_HERE, "leftpad")) + cases("ln_dec*", without=("misaligned",))
ENCODER_DECODERS = cases("ed_*", without=NOT_HERE)
LONGNET_ENCODERS = cases("ln_enc*")


@pytest.mark.parametrize("case", ENCODERS, ids=ids(ENCODERS))
def test_encoder(case: Case) -> None:
    model = loaded(case)
    found = encoder_outputs(case, model)
    masked = case.get("out/encoder_out_masked_reference")
    if masked is not None:  # the official kernel ignores padding
        assert_close(found["encoder_out"].detach(), masked, "parity", "encoder_out")
        return
    compare(case, found)
    check_loss_and_gradients(case, model, found["encoder_out"])


@pytest.mark.parametrize("case", cases("enc_incremental"), ids=lambda c: c.name)
@torch.no_grad()
def test_encoder_incremental(case: Case) -> None:
    model = loaded(case)
    prefix = case.meta["extra"]["prefix"]
    tokens, positions = case["in/src_tokens"], case["in/positions"]
    state: list[dict[str, Any]] = [{} for _ in model.layers]
    first = model(tokens[:, :prefix], positions=positions[:, :prefix], incremental_state=state)
    rest = model(tokens[:, prefix:], positions=positions[:, prefix:], incremental_state=state)
    key, _ = state[0]["self_attn"].content()
    found = {"prefix_out": first["encoder_out"], "rest_out": rest["encoder_out"]}
    compare(case, {**found, "cache_prev_key.0": key.transpose(1, 2)})


@pytest.mark.parametrize("case", DECODERS, ids=ids(DECODERS))
def test_decoder(case: Case) -> None:
    model, tokens = loaded(case), case["in/prev_output_tokens"]
    found = decoder_outputs(case, model)
    keep = case.get("in/loss_keep")
    keep = torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep
    compare(case, found, keep=keep)
    for first in (1, max(1, tokens.size(1) // 3)):
        steps = incremental_logits(model, tokens, first)
        for name in ("incremental_logits", "prefix_logits"):
            if f"out/{name}" in case.tensors:
                compare(case, {name: steps}, keep=keep)
        assert_close(steps[keep], found["logits"][keep].detach(), "float32", f"steps after a prompt of {first}")
    check_loss_and_gradients(case, model, found["logits"])


@pytest.mark.parametrize("case", cases("ln_limits"), ids=lambda c: c.name)
@torch.no_grad()
def test_longnet_decodes_where_the_official_one_cannot(case: Case) -> None:
    model, tokens = loaded(case), case["in/prev_output_tokens"]
    compare(case, {"logits": model(tokens)[0]})
    compare(case, {"logits": incremental_logits(model, tokens, 3)})


@pytest.mark.parametrize("case", LONGNET_ENCODERS, ids=ids(LONGNET_ENCODERS))
@torch.no_grad()
def test_longnet_encoder(case: Case) -> None:
    """Up to the last segment that is full of tokens: the official code attends to padding and to what fills it up."""
    mask = case["in/encoder_padding_mask"]
    actual, official = loaded(case)(case["in/src_tokens"], mask)["encoder_out"], case["out/encoder_out"]
    ends = [whole_until(case, mask.size(1), real) for real in (~mask).sum(1).tolist()]
    if not any(ends):
        pytest.skip("no row of these vectors has a segment without padding")
    for row, end in enumerate(ends):
        assert_close(actual[row, :end], official[row, :end], "parity", "encoder_out")


@pytest.mark.parametrize("case", cases("ln_dec_misaligned"), ids=lambda c: c.name)
@torch.no_grad()
def test_segments_that_their_ratio_does_not_divide(case: Case) -> None:
    """The official code shifts all of them but the first."""
    model, tokens = loaded(case), case["in/prev_output_tokens"]
    logits, _ = model(tokens)
    end = shifted_from(case, tokens.size(1))
    assert_close(logits[:, :end], case["out/logits"][:, :end], "parity", "logits")
    assert_close(incremental_logits(model, tokens), logits, "float32", "steps")


@pytest.mark.parametrize("case", cases("dec_leftpad"), ids=lambda c: c.name)
@torch.no_grad()
def test_decoder_left_padding(case: Case) -> None:
    logits = decoder_outputs(case, loaded(case))["logits"]
    assert logits.isfinite().all()
    finite = ~case["out/row_is_nan"]
    assert finite.any()
    compare(case, {"logits": logits}, keep=finite)


@pytest.mark.parametrize("case", ENCODER_DECODERS, ids=ids(ENCODER_DECODERS))
def test_encoder_decoder(case: Case) -> None:
    model, target, keep = loaded(case), case["in/prev_output_tokens"], case["in/loss_keep"]
    found = encoder_decoder_outputs(case, model)
    compare(case, {name: found[name] for name in ("encoder_out", "logits_top_level_forward_no_masks")})
    compare(case, {"logits": found["logits"]}, keep=keep)
    encoder_out = model.encoder(case["in/src_tokens"], case.get("in/encoder_padding_mask"))
    for first in (1, max(1, target.size(1) // 3)):
        steps = incremental_logits(model.decoder, target, first, encoder_out=encoder_out)
        if "out/incremental_logits" in case.tensors:
            compare(case, {"incremental_logits": steps}, keep=keep)
        assert_close(steps[keep], found["logits"][keep].detach(), "float32", f"steps after a prompt of {first}")
    check_loss_and_gradients(case, model, found["logits"])
