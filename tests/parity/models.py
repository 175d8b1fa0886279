"""Models of the core as a case describes them, and their outputs under the names that the vectors use."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.vectors import Case
from torchscale_fairseq import (
    BEiT3,
    BEiT3Config,
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    LongNetDecoder,
    LongNetEncoder,
    RetNetConfig,
    RetNetDecoder,
)
from torchscale_fairseq.core.layers.embedding import PositionalEmbedding, TextEmbedding

MODELS = {
    "Encoder": (EncoderConfig, Encoder),
    "Decoder": (DecoderConfig, Decoder),
    "EncoderDecoder": (EncoderDecoderConfig, EncoderDecoder),
    "LongNetEncoder": (EncoderConfig, LongNetEncoder),
    "LongNetDecoder": (DecoderConfig, LongNetDecoder),
    "RetNetDecoder": (RetNetConfig, RetNetDecoder),
    "BEiT3": (BEiT3Config, BEiT3),
}


def build(meta: dict[str, Any], **options: Any) -> nn.Module:
    """The model that a case's metadata describe, as initialised."""
    facts = meta["build"]
    config_class, model_class = MODELS[facts["cls"]]
    known = {f.name for f in dataclasses.fields(config_class)} - {"flash_attention"}  # a choice of kernel
    given = {k: v for k, v in meta["config_kwargs"].items() if k in known}
    config = config_class(torchscale_compatible=True, **{**given, **options})
    if facts["cls"] == "BEiT3":
        return model_class(config)
    embeddings = embeddings_of(facts)
    if facts["cls"] == "EncoderDecoder":
        decoder_tokens, decoder_positions = embeddings_of(facts)
        embeddings += (embeddings[0] if config.share_all_embeddings else decoder_tokens, decoder_positions)
    return model_class(config, *(embeddings[:1] if facts["cls"] == "RetNetDecoder" else embeddings))


def embeddings_of(facts: dict[str, Any]) -> tuple[nn.Module | None, ...]:
    """Token embedding and positions, or None for these."""
    positions = facts.get("embed_positions")
    return TextEmbedding(*facts["embed_tokens"]), positions and PositionalEmbedding(*positions)


def loaded(case: Case, **options: Any) -> Any:
    """The case's model with its parameters, all of them, and nothing left over."""
    model = build(case.meta, **options)
    model.load_state_dict(case.state(), strict=True)
    return model.eval()


def incremental_logits(decoder: nn.Module, tokens: Tensor, first: int = 1, **kwargs: Any) -> Tensor:
    """Logits after a prompt of ``first`` tokens and then single ones."""
    state: dict[str, Any] = {}
    lengths = [first, *range(first + 1, tokens.size(1) + 1)]
    with torch.no_grad():
        return torch.cat([decoder(tokens[:, :n], incremental_state=state, **kwargs)[0] for n in lengths], 1)


def encoder_outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """Outputs of an Encoder, with gradient."""
    names = ("src_tokens", "encoder_padding_mask", "attn_mask", "positions", "token_embeddings")
    arguments = {name: case.get(f"in/{name}") for name in names}
    split = case.meta["extra"].get("multiway_split_position")
    result = model(**arguments, multiway_split_position=split, return_all_hiddens=True)
    found = {"encoder_out": result["encoder_out"]}
    found |= {f"encoder_states.{i}": state for i, state in enumerate(result["encoder_states"])}
    found["features"] = model(**arguments, multiway_split_position=split, features_only=True)["encoder_out"]
    if split is not None:
        for branch, position in (("A", -1), ("B", 0)):
            output = model(**arguments, multiway_split_position=position)
            found[f"encoder_out_all_{branch}"] = output["encoder_out"]
    return found


def decoder_outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """Outputs of a Decoder in one pass, with gradient."""
    tokens, padding = case["in/prev_output_tokens"], case.get("in/self_attn_padding_mask")
    logits, extra = model(tokens, self_attn_padding_mask=padding, return_all_hiddens=True)
    return {"logits": logits, **{f"inner_states.{i}": state for i, state in enumerate(extra["inner_states"])}}


def encoder_decoder_outputs(case: Case, model: Any) -> dict[str, Tensor]:
    """Outputs of an EncoderDecoder in one pass, with gradient."""
    source, target = case["in/src_tokens"], case["in/prev_output_tokens"]
    masks = {name: case.get(f"in/{name}") for name in ("encoder_padding_mask", "self_attn_padding_mask")}
    return {
        "encoder_out": model.encoder(source, masks["encoder_padding_mask"])["encoder_out"],
        "logits": model(source, target, **masks)[0],
        "logits_top_level_forward_no_masks": model(source, target)[0],
    }


def beit3_outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """Outputs of BEiT3 for both modalities, with gradient, and for each alone."""
    words, images = case["in/textual_tokens"], case["in/visual_tokens"]
    padding, masked = case.get("in/text_padding_position"), case.get("in/vision_masked_position")
    both = model(words, images, padding, vision_masked_position=masked)
    assert both["multiway_split_position"] == case.meta["extra"]["multiway_split_position"]
    return {
        "both.encoder_out": both["encoder_out"],
        "text.encoder_out": model(words, text_padding_position=padding)["encoder_out"],
        "vision.encoder_out": model(visual_tokens=images, vision_masked_position=masked)["encoder_out"],
    }
