"""Configs as TorchScale has them: mutable, with any keyword accepted."""

import ast
import re
from collections.abc import Iterable
from typing import Any, ClassVar

_EXPERTS: dict[str, Any] = {
    "moe_freq": 0,
    "moe_top1_expert": False,
    "moe_expert_count": 0,
    "moe_gating_use_fp32": True,
    "moe_eval_capacity_token_fraction": 0.25,
    "moe_second_expert_policy": "random",
    "moe_normalize_gate_prob_before_dropping": False,
    "use_xmoe": False,
}
_COMMON: dict[str, Any] = {
    "activation_fn": "gelu",
    "dropout": 0.0,
    "drop_path_rate": 0.0,
    "activation_dropout": 0.0,
    "no_scale_embedding": True,
    "layernorm_embedding": False,
    **_EXPERTS,
    "rel_pos_buckets": 0,
    "max_rel_pos": 0,
    "deepnorm": False,
    "subln": True,
    "multiway": False,
    "no_output_layer": False,
    "layernorm_eps": 1e-5,
    "vocab_size": -1,
    "checkpoint_activations": False,
    "fsdp": False,
    "ddp_rank": 0,
    "xpos_rel_pos": False,
    "xpos_scale_base": 512,
}
_TRANSFORMER: dict[str, Any] = {
    **_COMMON,
    "attention_dropout": 0.0,
    "bert_init": False,
    "flash_attention": False,
    "segment_length": None,
    "dilated_ratio": None,
    "seq_parallel": False,
}


def _side(name: str) -> dict[str, Any]:
    return {
        f"{name}_embed_dim": 768,
        f"{name}_attention_heads": 12,
        f"{name}_ffn_embed_dim": 3072,
        f"{name}_layers": 12,
        f"{name}_normalize_before": True,
    }


class _Config:
    """Attributes with defaults; keywords that are none of them are ignored."""

    defaults: ClassVar[dict[str, Any]] = {}
    deepnorm: bool

    def __init__(self, **kwargs: Any):
        for name, default in self.defaults.items():
            setattr(self, name, kwargs.get(name, default))
        self.postprocessing()

    def __getattr__(self, name: str) -> Any:  # for type checkers; attributes that exist never come here
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    def override(self, args: Any) -> None:
        """Take over each attribute that ``args`` also has, unless it is None there."""
        for name in vars(self):
            value = getattr(args, name, None)
            if value is not None:
                setattr(self, name, value)
        self.postprocessing()

    def postprocessing(self) -> None:
        """Make attributes agree. As in TorchScale, deepnorm and subln set encoder_normalize_before on either side."""
        if self.deepnorm:
            self.encoder_normalize_before = False
            self.subln = False
        if self.subln:
            self.encoder_normalize_before = True
            self.deepnorm = False
        if self.use_xmoe:
            self.moe_normalize_gate_prob_before_dropping = True
            self.moe_second_expert_policy = "random"
            if not (self.moe_freq > 0 and self.moe_expert_count > 0):
                raise AssertionError("use_xmoe=True needs moe_freq and moe_expert_count above 0.")
        for name in ("segment_length", "dilated_ratio"):
            if getattr(self, name, None) is not None:
                setattr(self, name, integers(name, getattr(self, name)))


class EncoderConfig(_Config):
    """Options of ``Encoder``, ``LongNetEncoder`` and ``BEiT3``."""

    defaults: ClassVar[dict[str, Any]] = {
        **_side("encoder"),
        "normalize_output": True,
        **_TRANSFORMER,
        "share_encoder_input_output_embed": False,
        "max_source_positions": 1024,
        "img_size": 224,
        "patch_size": 16,
        "in_chans": 3,
    }


class DecoderConfig(_Config):
    """Options of ``Decoder`` and ``LongNetDecoder``."""

    defaults: ClassVar[dict[str, Any]] = {
        **_side("decoder"),
        **_TRANSFORMER,
        "share_decoder_input_output_embed": False,
        "max_target_positions": 1024,
    }


class EncoderDecoderConfig(_Config):
    """Options of ``EncoderDecoder``."""

    defaults: ClassVar[dict[str, Any]] = {
        **_side("encoder"),
        "normalize_output": True,
        **_side("decoder"),
        **_TRANSFORMER,
        "share_all_embeddings": False,
        "share_decoder_input_output_embed": False,
        "max_source_positions": 1024,
        "max_target_positions": 1024,
    }


class RetNetConfig(_Config):
    """Options of ``RetNetDecoder``."""

    defaults: ClassVar[dict[str, Any]] = {
        "decoder_embed_dim": 768,
        "decoder_value_embed_dim": 1280,
        "decoder_retention_heads": 3,
        "decoder_ffn_embed_dim": 1280,
        "decoder_layers": 12,
        "decoder_normalize_before": True,
        **_COMMON,
        "share_decoder_input_output_embed": False,
        "max_target_positions": 1024,
        "layernorm_eps": 1e-6,
        "chunkwise_recurrent": False,
        "recurrent_chunk_size": 512,
    }


def integers(name: str, value: Any) -> list[int]:
    """Whole numbers from a list, a tuple, an array, or the text of one, that of numpy 2 included.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str):
        value = ast.literal_eval(re.sub(r"\b(?:np|numpy)\.\w+\((\d+)\)", r"\1", value))
    if not isinstance(value, Iterable):
        raise ValueError(f"{name} ({value!r}) must be a list of whole numbers, such as '[2048,4096]'.")
    return [int(number) for number in value]
