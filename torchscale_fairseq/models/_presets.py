"""The presets: changes of each registered architecture to its config's defaults."""

from ._options import Preset


def _sizes(*sides: str, **sizes: tuple[int, int, int, int]) -> dict[str, Preset]:
    """Per name: layers, width, inner width and heads, the same for each side."""
    return {
        name: {
            f"{side}_{option}": value
            for side in sides
            for option, value in zip(("layers", "embed_dim", "ffn_embed_dim", "attention_heads"), size, strict=True)
        }
        for name, size in sizes.items()
    }


def _with_experts(sizes: dict[str, Preset], **experts: int) -> dict[str, Preset]:
    """Sizes of models by their number of experts."""
    return {name: {**sizes[name], "moe_expert_count": count} for name, count in experts.items()}


def _gated(sizes: dict[str, Preset]) -> dict[str, Preset]:
    """Sizes with the inner widths of gated units, which have three matrices: two thirds, in multiples of eight, for as
    many parameters."""
    widths = {"small": 688, "base": 1368, "large": 2736}
    return {
        name: {**sizes[name], "encoder_ffn_embed_dim": width, "decoder_ffn_embed_dim": width}
        for name, width in widths.items()
    }


def _family(name: str, common: Preset, sizes: dict[str, Preset]) -> dict[str, Preset]:
    """One architecture per size, and the base size under the family's own name."""
    return {name: {**common, **sizes["base"]}, **{f"{name}_{size}": {**common, **p} for size, p in sizes.items()}}


_DEEPNORM: Preset = {"deepnorm": True}
_MAGNETO: Preset = {"subln": True}
_SWIGLU: Preset = {"subln": False, "norm": "rmsnorm", "activation_fn": "swish", "gated_ffn": True}
_XMOE: Preset = {**_DEEPNORM, "moe_freq": 2, "use_xmoe": True, "moe_gating_use_fp32": True}

_TRANSLATION_SIZES = _sizes(
    "encoder",
    "decoder",
    small=(3, 256, 1024, 4),
    base=(6, 512, 2048, 8),
    large=(12, 1024, 4096, 16),
)
_TRANSLATION_COMMON: Preset = {"activation_fn": "relu", "dropout": 0.1, "no_scale_embedding": False}

TRANSLATION: dict[str, Preset] = {
    **_family("mt_deepnorm", {**_TRANSLATION_COMMON, **_DEEPNORM}, _TRANSLATION_SIZES),
    **_family("mt_magneto", {**_TRANSLATION_COMMON, **_MAGNETO}, _TRANSLATION_SIZES),
    **_family(
        "mt_xmoe", {**_TRANSLATION_COMMON, **_XMOE}, _with_experts(_TRANSLATION_SIZES, small=8, base=32, large=64)
    ),
    **_family("mt_swiglu", {**_TRANSLATION_COMMON, **_SWIGLU}, _gated(_TRANSLATION_SIZES)),
    "mt_base": {
        **_TRANSLATION_COMMON,
        **_TRANSLATION_SIZES["base"],
        "torchscale_compatible": True,
        "subln": False,
        "encoder_normalize_before": False,
        "decoder_normalize_before": False,
    },
}

_LANGUAGE_SIZES = _sizes(
    "decoder",
    small=(4, 256, 1024, 4),
    base=(12, 768, 3072, 12),
    medium=(24, 1024, 4096, 16),
    large=(24, 1536, 6144, 16),
    xl=(24, 2048, 8192, 16),
)
_LANGUAGE_COMMON: Preset = {"activation_fn": "gelu", "dropout": 0.1, "no_scale_embedding": False}

_LONGNET_BRANCHES: Preset = {
    "segment_length": "[2048,4096,8192,16384,32768]",
    "dilated_ratio": "[1,2,4,6,12]",
    "xpos_scale_base": 16384,
}
_LONGNET_SIZES: dict[str, Preset] = {
    "small": {**_LANGUAGE_SIZES["small"], "segment_length": "[64,128,256]", "dilated_ratio": "[1,2,4]"},
    "base": {**_LANGUAGE_SIZES["base"], **_LONGNET_BRANCHES},
    "large": {**_LANGUAGE_SIZES["large"], **_LONGNET_BRANCHES},
}

LANGUAGE: dict[str, Preset] = {
    **_family("gpt_deepnorm", {**_LANGUAGE_COMMON, **_DEEPNORM}, _LANGUAGE_SIZES),
    **_family("gpt_magneto", {**_LANGUAGE_COMMON, **_MAGNETO}, _LANGUAGE_SIZES),
    **_family("gpt_xpos", {**_LANGUAGE_COMMON, **_MAGNETO, "xpos_rel_pos": True}, _LANGUAGE_SIZES),
    **_family("longnet", {**_LANGUAGE_COMMON, **_MAGNETO, "xpos_rel_pos": True}, _LONGNET_SIZES),
    "lm_base": {
        "decoder_layers": 6,
        "decoder_embed_dim": 512,
        "decoder_ffn_embed_dim": 2048,
        "decoder_attention_heads": 8,
        "activation_fn": "relu",
        "dropout": 0.1,
        "no_scale_embedding": False,
        "torchscale_compatible": True,
        "subln": False,
        "decoder_normalize_before": True,
    },
}
"""The sizes after small are those of GPT-3 (arXiv:2005.14165, table 2.1): 125M, 350M, 760M and 1.3B parameters
with an output projection that shares the embedding. Small trains on a CPU in minutes. LongNet's branches and base size
are those of arXiv:2307.02486, sec. 4.1, for samples of 32,768 tokens. Of xPos's base the paper says nothing: it is half
of that, as in xPos's own paper."""

_BITNET_SIZES = _sizes(
    "decoder",
    small=(4, 256, 704, 4),
    base=(12, 768, 2048, 12),
    **{"700m": (24, 1536, 4096, 24), "1_3b": (24, 2048, 5460, 32), "3b": (26, 3200, 8640, 32)},
)
LANGUAGE |= _family(
    "bitnet",
    {
        **_LANGUAGE_COMMON,
        "bitnet": "b1.58",
        "subln": False,
        "activation_fn": "swish",
        "gated_ffn": True,
        "norm": "rmsnorm",
        "xpos_rel_pos": True,
        "dropout": 0.0,
    },
    _BITNET_SIZES,
)
"""From 700m on the sizes of arXiv:2402.17764; base is as large as GPT-3's smallest."""

_MASKED_SIZES = _sizes(
    "encoder",
    small=(4, 256, 1024, 4),
    medium=(8, 512, 2048, 8),
    base=(12, 768, 3072, 12),
    large=(24, 1024, 4096, 16),
    xl=(24, 2048, 8192, 32),
)
_MASKED_COMMON: Preset = {
    "activation_fn": "gelu",
    "dropout": 0.1,
    "encoder_learned_pos": True,
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "share_encoder_input_output_embed": True,
}

MASKED: dict[str, Preset] = {
    **_family("bert_magneto", {**_MASKED_COMMON, **_MAGNETO, "attention_dropout": 0.1}, _MASKED_SIZES),
    **_family("bert_deepnorm", {**_MASKED_COMMON, **_DEEPNORM, "attention_dropout": 0.1}, _MASKED_SIZES),
    "mlm_base": {
        **_MASKED_COMMON,
        **_MASKED_SIZES["base"],
        "torchscale_compatible": True,
        "subln": False,
        "encoder_normalize_before": False,
    },
}
"""Base and large are BERT's (arXiv:1810.04805), small and medium the mini and medium of "Well-Read Students Learn
Better" (arXiv:1908.08962), xl the 1.3B of Megatron-LM (arXiv:1909.08053)."""

_RETENTION_COMMON: Preset = {"activation_fn": "swish", "no_scale_embedding": False}
_RETENTION_SIZES: dict[str, tuple[int, int, int, int]] = {
    "small": (4, 256, 432, 2),
    "base": (6, 512, 864, 2),
    "medium": (16, 1024, 1728, 4),
    "xl": (24, 2048, 3456, 8),
    "3b": (32, 2560, 4280, 10),
    "7b": (32, 4096, 6912, 16),
    "13b": (40, 5120, 8560, 20),
    "65b": (64, 8192, 13824, 32),
}
"""Layers, width, inner width (of values and of feed-forward networks) and heads."""

RETENTION: dict[str, Preset] = {
    f"retnet_{size}": {
        **_RETENTION_COMMON,
        "decoder_layers": layers,
        "decoder_embed_dim": width,
        "decoder_value_embed_dim": inner,
        "decoder_ffn_embed_dim": inner,
        "decoder_retention_heads": heads,
    }
    for size, (layers, width, inner, heads) in _RETENTION_SIZES.items()
}
"""The sizes are TorchScale's, but for small, which trains on a CPU in minutes."""

RETENTION_TRANSLATION: dict[str, Preset] = _family(
    "mt_retnet",
    {
        **_TRANSLATION_COMMON,
        "activation_fn": "swish",
        "gated_ffn": True,
        "norm": "rmsnorm",
    },
    {
        size: {
            **_TRANSLATION_SIZES[size],
            "encoder_ffn_embed_dim": inner,
            "decoder_ffn_embed_dim": inner,
            "decoder_value_embed_dim": inner,
            "decoder_retention_heads": heads,
        }
        for size, inner, heads in (("small", 432, 2), ("base", 864, 2), ("large", 1728, 4))
    },
)

_SPEECH_SIZES: dict[str, Preset] = {
    size: {**preset, "decoder_layers": layers}
    for (size, preset), layers in zip(
        _sizes(
            "encoder",
            "decoder",
            small=(6, 256, 1024, 4),
            base=(12, 512, 2048, 8),
            large=(12, 1024, 4096, 16),
        ).items(),
        (3, 6, 6),
        strict=True,
    )
}

SPEECH: dict[str, Preset] = {
    **_family("s2t_deepnorm", {**_TRANSLATION_COMMON, **_DEEPNORM}, _SPEECH_SIZES),
    **_family("s2t_magneto", {**_TRANSLATION_COMMON, **_MAGNETO}, _SPEECH_SIZES),
    **_family("s2t_xmoe", {**_TRANSLATION_COMMON, **_XMOE}, _with_experts(_SPEECH_SIZES, small=8, base=32, large=64)),
    **_family("s2t_swiglu", {**_TRANSLATION_COMMON, **_SWIGLU}, _gated(_SPEECH_SIZES)),
}
"""Base and large are fairseq's s2t_transformer_m and _l (arXiv:2010.05171), small is its s2t_transformer_xs, which
trains on a CPU in minutes. ``s2t_swiglu`` has the inner widths of ``mt_swiglu``."""

SPEECH_LONGNET: dict[str, Preset] = _family(
    "s2t_longnet",
    {**_TRANSLATION_COMMON, **_MAGNETO, "xpos_rel_pos": True},
    {
        size: {**sizes, "segment_length": segments, "dilated_ratio": ratios}
        for (size, sizes), segments, ratios in zip(
            _SPEECH_SIZES.items(),
            ("[128,256,512]", "[256,512,1024,2048]", "[256,512,1024,2048]"),
            ("[1,2,4]", "[1,2,4,8]", "[1,2,4,8]"),
            strict=True,
        )
    },
)
"""A segment of 256 tokens of the encoder is ten seconds of speech."""

SPEECH_RETENTION: dict[str, Preset] = _family(
    "s2t_retnet",
    {**_TRANSLATION_COMMON, "activation_fn": "swish", "gated_ffn": True, "norm": "rmsnorm"},
    {
        size: {
            **_SPEECH_SIZES[size],
            "encoder_ffn_embed_dim": inner,
            "decoder_ffn_embed_dim": inner,
            "decoder_value_embed_dim": inner,
            "decoder_retention_heads": heads,
        }
        for size, inner, heads in (("small", 432, 2), ("base", 864, 2), ("large", 1728, 4))
    },
)

IMAGE_TEXT: dict[str, Preset] = _family(
    "beit3",
    {"activation_fn": "gelu", "dropout": 0.0},
    _sizes(
        "encoder",
        small=(4, 128, 512, 4),
        base=(12, 768, 3072, 12),
        large=(24, 1024, 4096, 16),
    ),
)
"""Base and large have the sizes of the released models; small trains on a CPU in minutes."""

IMAGES: dict[str, Preset] = {
    f"longvit_{size}": {"activation_fn": "gelu", **sizes}
    for size, sizes in _sizes(
        "encoder",
        tiny=(2, 64, 256, 4),
        small=(12, 384, 1536, 16),
        base=(12, 768, 3072, 16),
    ).items()
}
"""Small is the released model; tiny trains on a CPU in minutes."""

SLIDES: dict[str, Preset] = {
    f"slide_encoder_{size}": {"activation_fn": "gelu", **sizes}
    for size, sizes in _sizes(
        "encoder",
        tiny=(2, 64, 256, 4),
        small=(12, 384, 1536, 16),
        base=(12, 768, 3072, 16),
    ).items()
}
"""Base has the sizes of Prov-GigaPath's released slide encoder; tiny trains on a CPU in minutes."""

_VISION_SIZES = _sizes(
    "encoder",
    tiny=(12, 192, 768, 3),
    small=(12, 384, 1536, 6),
    base=(12, 768, 3072, 12),
    large=(24, 1024, 4096, 16),
)
VISION: dict[str, Preset] = {
    f"{family}_{size}": {**kind, "layernorm_eps": 1e-6, **sizes}
    for family, kind in (("vit", {"subln": False}), ("vit_magneto", _MAGNETO), ("vit_deepnorm", _DEEPNORM))
    for size, sizes in _VISION_SIZES.items()
}
"""Base and large are those of arXiv:2010.11929, tiny and small those of DeiT (arXiv:2012.12877). ``vit`` is the plain
pre-norm model of timm's and the authors' released weights."""

MASKED_IMAGES: dict[str, Preset] = {
    f"beit_{size}": {"subln": False, "pooling": "mean", "layernorm_eps": 1e-6, **sizes}
    for size, sizes in _VISION_SIZES.items()
}
"""Base and large are those of arXiv:2106.08254, tiny and small those of DeiT. Images are classified by the mean of
their patches, as in sec. 2.6 there."""
