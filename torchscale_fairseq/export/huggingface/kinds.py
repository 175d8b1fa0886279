"""Which classes of transformers serve which model of the core."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchscale_fairseq.core.config import RetentionSide
from torchscale_fairseq.core.errors import InputError

LONGEST_TRANSLATION = 200
"""fairseq-generate's default of --max-len-b: tokens in front of the end."""
MODULE = "modeling_torchscale"
BOS, PAD, EOS, UNK = range(4)
"""Numbers of <s>, <pad>, </s> and <unk> in every dictionary of fairseq."""
READ_BY_THE_BUILDER = (
    "embed_tokens.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "output_projection.weight",
    "output_projection.dense.weight",
    "head.bias",
)
"""Tensors from whose shapes ``core.saving.build`` reads vocabularies, classes and heads."""
LONGEST = {"encoder": "max_source_positions", "decoder": "max_target_positions"}
TARGET_EMBEDDING = "decoder.embed_tokens.weight"


@dataclass(frozen=True)
class Kind:
    """Args:
    auto: the class of transformers that finds the model.
    model: the class in the modelling file.
    embedding: name of the embedding whose rows are the (target) vocabulary.
    side: the side of the core's config that says the sizes.
    """

    auto: str
    model: str
    embedding: str | None
    side: str


CAUSAL = Kind("AutoModelForCausalLM", "TorchScaleForCausalLM", "embed_tokens.weight", "decoder")
MASKED = Kind("AutoModelForMaskedLM", "TorchScaleForMaskedLM", "embed_tokens.weight", "encoder")
TRANSLATION = Kind("AutoModelForSeq2SeqLM", "TorchScaleForSeq2SeqLM", TARGET_EMBEDDING, "decoder")
KINDS = {
    "DecoderConfig": CAUSAL,
    "RetNetConfig": CAUSAL,
    "EncoderConfig": MASKED,
    "EncoderDecoderConfig": TRANSLATION,
    "RetNetEncoderDecoderConfig": TRANSLATION,
    "LongViTConfig": Kind("AutoModelForImageClassification", "TorchScaleForImageClassification", None, "encoder"),
    "BEiT3Config": Kind("AutoModel", "TorchScaleForImageAndText", "text_embed.weight", "encoder"),
}


def kind_of(config: Any) -> Kind:
    """The kind of the model that a config of the core describes.

    Raises:
        InputError: transformers has no class for it.
    """
    name = type(config).__name__
    if name not in KINDS:
        raise InputError(
            f"transformers has no class for a {name.removesuffix('Config')}; write it with torchscale-fairseq convert "
            "to-safetensors for load_pretrained"
        )
    return KINDS[name]


def configuration(config: Any, tensors: Mapping[str, Tensor], classes: list[str]) -> dict[str, Any]:
    """The content of config.json.

    Args:
        config: of the core.
        tensors: the state dict of its model.
        classes: names of an image classifier's.
    """
    kind = kind_of(config)
    content = {
        "model_type": "torchscale_fairseq",
        "architectures": [kind.model],
        "auto_map": {"AutoConfig": f"{MODULE}.TorchScaleConfig", kind.auto: f"{MODULE}.{kind.model}"},
        "dtype": str(next(t.dtype for t in tensors.values() if t.is_floating_point())).removeprefix("torch."),
        "core_config": type(config).__name__,
        "core_options": {**dataclasses.asdict(config), "compile": False, "checkpoint_activations": False},
        "core_shapes": {name: list(tensors[name].shape) for name in READ_BY_THE_BUILDER if name in tensors},
        "is_encoder_decoder": kind is TRANSLATION,
        "hidden_size": getattr(config, f"{kind.side}_embed_dim"),
        "num_hidden_layers": getattr(config, f"{kind.side}_layers"),
        "num_attention_heads": _heads(config, kind.side),
    }
    if kind.embedding:
        content |= {"vocab_size": len(tensors[kind.embedding])}
        content |= {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS}
    if kind is TRANSLATION:
        content["decoder_start_token_id"] = EOS
    elif getattr(config, "has_absolute_positions", False):
        content["max_position_embeddings"] = getattr(config, LONGEST[kind.side])
    if "head.bias" in tensors:
        names = classes or [f"LABEL_{index}" for index in range(len(tensors["head.bias"]))]
        content["id2label"] = dict(enumerate(names))
        content["label2id"] = {name: index for index, name in enumerate(names)}
    return content


def _heads(config: Any, side: str) -> int:
    retains = side == "decoder" and isinstance(config, RetentionSide)
    heads: int = getattr(config, f"{side}_{'retention' if retains else 'attention'}_heads")
    return heads


def generation(kind: Kind, config: Any) -> dict[str, Any] | None:
    """The content of generation_config.json, by which ``generate`` searches as fairseq-generate does; None for models
    that generate nothing.

    Args:
        kind: of the model.
        config: of the core.
    """
    common = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "suppress_tokens": [PAD]}
    if kind is CAUSAL:
        return common
    if kind is not TRANSLATION:
        return None
    search = {"num_beams": 5, "early_stopping": True, "length_penalty": 1.0, "min_new_tokens": 1}
    longest = min(LONGEST_TRANSLATION + 1, getattr(config, "max_target_positions", LONGEST_TRANSLATION + 1))
    ends = {"max_new_tokens": longest, "forced_eos_token_id": EOS, "decoder_start_token_id": EOS}
    return {**common, **search, **ends}
