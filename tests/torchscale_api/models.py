"""Models of the golden vectors, built by TorchScale's names in the official way."""

import importlib
from typing import Any

from torch import Tensor, nn

from tests.parity.vectors import Case
from torchscale_fairseq.torchscale_api.component.embedding import PositionalEmbedding, TextEmbedding

PATHS = {
    "Encoder": ("EncoderConfig", "architecture.encoder"),
    "Decoder": ("DecoderConfig", "architecture.decoder"),
    "EncoderDecoder": ("EncoderDecoderConfig", "architecture.encoder_decoder"),
    "LongNetEncoder": ("EncoderConfig", "model.LongNet"),
    "LongNetDecoder": ("DecoderConfig", "model.LongNet"),
    "RetNetDecoder": ("RetNetConfig", "architecture.retnet"),
    "BEiT3": ("EncoderConfig", "model.BEiT3"),
    "MOELayer": ("EncoderConfig", "component.xmoe.moe_layer"),
}


def module(path: str) -> Any:
    return importlib.import_module(f"torchscale_fairseq.torchscale_api.{path}")


def config_of(case: Case) -> Any:
    kind = getattr(module("architecture.config"), PATHS[case.meta["build"]["cls"]][0])
    return kind(**case.meta["config_kwargs"])


def build(case: Case) -> nn.Module:
    """As initialised."""
    facts = case.meta["build"]
    config, model_class = config_of(case), getattr(module(PATHS[facts["cls"]][1]), facts["cls"])
    if facts["cls"] == "BEiT3":
        return model_class(config)
    words, places = embeddings(facts)
    if facts["cls"] == "RetNetDecoder":
        return model_class(config, words)
    if facts["cls"] == "EncoderDecoder":
        others = embeddings(facts)
        return model_class(config, words, places, words if config.share_all_embeddings else others[0], others[1])
    return model_class(config, words, places)


def embeddings(facts: dict[str, Any]) -> tuple[nn.Module, nn.Module | None]:
    places = facts.get("embed_positions")
    return TextEmbedding(*facts["embed_tokens"]), places and PositionalEmbedding(*places)


def loaded(case: Case) -> nn.Module:
    """With the vectors' state dict, strictly."""
    model = build(case)
    model.load_state_dict(case.state(), strict=True)
    return model.eval()


def incremental_logits(decoder: nn.Module, tokens: Tensor, **kwargs: Any) -> list[Tensor]:
    """The last logits of each step, with TorchScale's dictionaries as state."""
    state: dict[Any, Any] = {}
    return [decoder(tokens[:, : n + 1], incremental_state=state, **kwargs)[0][:, -1] for n in range(tokens.size(1))]
