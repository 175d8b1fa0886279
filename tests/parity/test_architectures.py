"""Encoder, decoder and encoder-decoder equal the official ones under ``torchscale_compatible``."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_close
from tests.parity.vectors import Case, cases, check_loss_and_gradients
from torchscale_fairseq import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    LongNetDecoder,
    LongNetEncoder,
)
from torchscale_fairseq.core.layers.embedding import PositionalEmbedding, TextEmbedding

NOT_HERE = ("moe",)
MODELS = {
    "Encoder": (EncoderConfig, Encoder),
    "Decoder": (DecoderConfig, Decoder),
    "EncoderDecoder": (EncoderDecoderConfig, EncoderDecoder),
    "LongNetEncoder": (EncoderConfig, LongNetEncoder),
    "LongNetDecoder": (DecoderConfig, LongNetDecoder),
}


def build(case: Case) -> nn.Module:
    """The case's model with its parameters."""
    facts = case.meta["build"]
    config_class, model_class = MODELS[facts["cls"]]
    known = {f.name for f in dataclasses.fields(config_class)}
    kwargs = {k: v for k, v in case.meta["config_kwargs"].items() if k in known}
    kwargs.pop("flash_attention", None)  # a choice of kernel, not of function
    config = config_class(torchscale_compatible=True, **kwargs)
    vocabulary, width, padding = facts["embed_tokens"]

    def embeddings() -> tuple[nn.Module, nn.Module | None]:
        positions = facts.get("embed_positions")
        return TextEmbedding(vocabulary, width, padding), positions and PositionalEmbedding(*positions)

    if facts["cls"] == "EncoderDecoder":
        tokens, positions = embeddings()
        decoder_tokens, decoder_positions = embeddings()
        if config.share_all_embeddings:
            decoder_tokens = tokens
        model = model_class(config, tokens, positions, decoder_tokens, decoder_positions)
    else:
        model = model_class(config, *embeddings())
    model.load_state_dict({**case.group("param/"), **case.group("buffer/")}, strict=not tied(case))
    return model.eval()


def tied(case: Case) -> bool:
    return any("share" in k and v for k, v in case.meta["config_kwargs"].items())


def tolerance(case: Case) -> str:
    return "parity_logits" if tied(case) else "parity"


def compare(case: Case, actual: Tensor, name: str) -> None:
    expected = case.get(f"out/{name}")
    if expected is not None:
        assert_close(actual, expected, tolerance(case), name)


def ids(found: list[Case]) -> list[str]:
    return [c.name for c in found]


ENCODERS = cases("enc_*", without=(*NOT_HERE, "incremental"))
DECODERS = cases("dec_*", without=(*NOT_HERE, "leftpad")) + cases("ln_dec*", without=("misaligned",))
ENCODER_DECODERS = cases("ed_*", without=NOT_HERE)


@pytest.mark.parametrize("case", ENCODERS, ids=ids(ENCODERS))
def test_encoder(case: Case) -> None:
    model = build(case)
    arguments = {k: case.get(f"in/{k}") for k in ("src_tokens", "encoder_padding_mask", "attn_mask", "positions")}
    arguments["token_embeddings"] = case.get("in/token_embeddings")
    split = case.meta["extra"].get("multiway_split_position")
    arguments["multiway_split_position"] = split
    result = model(**arguments, return_all_hiddens=True)
    if case.name == "enc_flash":  # the official kernel ignores padding
        compare(case, result["encoder_out"], "encoder_out_masked_reference")
        return
    compare(case, result["encoder_out"], "encoder_out")
    for i, state in enumerate(result["encoder_states"]):
        compare(case, state, f"encoder_states.{i}")
    compare(case, model(**arguments, features_only=True)["encoder_out"], "features")
    if split is not None:
        for name, position in (("A", -1), ("B", 0)):
            out = model(**{**arguments, "multiway_split_position": position})["encoder_out"]
            compare(case, out, f"encoder_out_all_{name}")
    check_loss_and_gradients(case, model, result["encoder_out"])


@pytest.mark.parametrize("case", cases("enc_incremental"), ids=lambda c: c.name)
def test_encoder_incremental(case: Case) -> None:
    model = build(case)
    prefix = case.meta["extra"]["prefix"]
    tokens, positions = case["in/src_tokens"], case["in/positions"]
    state = [{} for _ in model.layers]
    with torch.no_grad():
        first = model(tokens[:, :prefix], positions=positions[:, :prefix], incremental_state=state)
        rest = model(tokens[:, prefix:], positions=positions[:, prefix:], incremental_state=state)
    compare(case, first["encoder_out"], "prefix_out")
    compare(case, rest["encoder_out"], "rest_out")
    key, _ = state[0]["self_attn"].content()
    compare(case, key.transpose(1, 2), "cache_prev_key.0")


def incremental_logits(decoder: nn.Module, tokens: Tensor, first: int, **kwargs: object) -> Tensor:
    """Logits after a prompt of ``first`` tokens and then single ones."""
    state: dict = {}
    lengths = [first, *range(first + 1, tokens.size(1) + 1)]
    with torch.no_grad():
        return torch.cat([decoder(tokens[:, :n], incremental_state=state, **kwargs)[0] for n in lengths], 1)


@pytest.mark.parametrize("case", DECODERS, ids=ids(DECODERS))
def test_decoder(case: Case) -> None:
    model = build(case)
    tokens, padding = case["in/prev_output_tokens"], case.get("in/self_attn_padding_mask")
    logits, extra = model(tokens, self_attn_padding_mask=padding, return_all_hiddens=True)
    keep = case.get("in/loss_keep")
    keep = torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep
    assert_close(logits[keep], case["out/logits"][keep], tolerance(case), "logits")
    for i, state in enumerate(extra["inner_states"]):
        expected = case.get(f"out/inner_states.{i}")
        if expected is not None:
            assert_close(state[keep], expected[keep], tolerance(case), f"inner_states.{i}")
    for first in (1, 5):
        steps = incremental_logits(model, tokens, first)
        for name in ("incremental_logits", "prefix_logits"):
            if f"out/{name}" in case.tensors:
                assert_close(steps[keep], case[f"out/{name}"][keep], tolerance(case), f"steps after {first}")
        assert_close(steps[keep], logits[keep].detach(), "float32", f"steps after a prompt of {first}")
    check_loss_and_gradients(case, model, logits)


@pytest.mark.parametrize("case", cases("ln_limits"), ids=lambda c: c.name)
@torch.no_grad()
def test_longnet_decodes_where_the_official_one_cannot(case: Case) -> None:
    model, tokens = build(case), case["in/prev_output_tokens"]
    compare(case, model(tokens)[0], "logits")
    compare(case, incremental_logits(model, tokens, 3), "logits")


LONGNET_ENCODERS = cases("ln_enc*")


@pytest.mark.parametrize("case", LONGNET_ENCODERS, ids=ids(LONGNET_ENCODERS))
@torch.no_grad()
def test_longnet_encoder(case: Case) -> None:
    """Up to the last segment that is full of tokens: the official code attends to padding and to what fills it up."""
    mask = case["in/encoder_padding_mask"]
    actual, official = build(case)(case["in/src_tokens"], mask)["encoder_out"], case["out/encoder_out"]
    for row, real in enumerate((~mask).sum(1).tolist()):
        full = real // 16 * 16
        assert_close(actual[row, :full], official[row, :full], tolerance(case), "encoder_out")
        rest = (actual - official)[row, full:real].abs()
        assert not rest.numel() or rest.max() > 1e-2


@pytest.mark.parametrize("case", cases("ln_dec_misaligned"), ids=lambda c: c.name)
@torch.no_grad()
def test_segments_that_their_ratio_does_not_divide(case: Case) -> None:
    """The official code shifts all of them but the first."""
    model, tokens = build(case), case["in/prev_output_tokens"]
    logits, _ = model(tokens)
    assert_close(logits[:, :6], case["out/logits"][:, :6], tolerance(case), "logits")
    assert (logits - case["out/logits"])[:, 6:].abs().max() > 1e-2
    assert_close(incremental_logits(model, tokens, 1), logits, "float32", "steps")


@pytest.mark.parametrize("case", cases("dec_leftpad"), ids=lambda c: c.name)
def test_decoder_left_padding(case: Case) -> None:
    model = build(case)
    logits, _ = model(case["in/prev_output_tokens"], self_attn_padding_mask=case["in/self_attn_padding_mask"])
    assert logits.isfinite().all()
    finite = ~case["out/row_is_nan"]
    assert finite.any()
    assert_close(logits[finite], case["out/logits"][finite], "parity", "rows without padding")


@pytest.mark.parametrize("case", ENCODER_DECODERS, ids=ids(ENCODER_DECODERS))
def test_encoder_decoder(case: Case) -> None:
    model = build(case)
    source, target = case["in/src_tokens"], case["in/prev_output_tokens"]
    encoder_out = model.encoder(source, case.get("in/encoder_padding_mask"))
    compare(case, encoder_out["encoder_out"], "encoder_out")
    logits, _ = model(
        source,
        target,
        encoder_padding_mask=case.get("in/encoder_padding_mask"),
        self_attn_padding_mask=case.get("in/self_attn_padding_mask"),
    )
    keep = case["in/loss_keep"]
    assert_close(logits[keep], case["out/logits"][keep], tolerance(case), "logits")
    compare(case, model(source, target)[0], "logits_top_level_forward_no_masks")
    for first in (1, 4):
        steps = incremental_logits(model.decoder, target, first, encoder_out=encoder_out)
        if "out/incremental_logits" in case.tensors:
            assert_close(steps[keep], case["out/incremental_logits"][keep], tolerance(case), f"steps after {first}")
        assert_close(steps[keep], logits[keep].detach(), "float32", f"steps after a prompt of {first}")
    check_loss_and_gradients(case, model, logits)
