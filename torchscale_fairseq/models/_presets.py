"""What each registered architecture changes in its config's defaults."""

from ._options import Preset

_TRANSLATION_SMALL: Preset = {
    "encoder_embed_dim": 256,
    "encoder_ffn_embed_dim": 1024,
    "encoder_attention_heads": 4,
    "encoder_layers": 3,
    "decoder_embed_dim": 256,
    "decoder_ffn_embed_dim": 1024,
    "decoder_attention_heads": 4,
    "decoder_layers": 3,
}
_TRANSLATION_BASE: Preset = {
    "encoder_embed_dim": 512,
    "encoder_ffn_embed_dim": 2048,
    "encoder_attention_heads": 8,
    "encoder_layers": 6,
    "decoder_embed_dim": 512,
    "decoder_ffn_embed_dim": 2048,
    "decoder_attention_heads": 8,
    "decoder_layers": 6,
}
_TRANSLATION_LARGE: Preset = {
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "encoder_layers": 12,
    "decoder_embed_dim": 1024,
    "decoder_ffn_embed_dim": 4096,
    "decoder_attention_heads": 16,
    "decoder_layers": 12,
}
_TRANSLATION_COMMON: Preset = {"activation_fn": "relu", "dropout": 0.1, "no_scale_embedding": False}
_DEEPNORM: Preset = {**_TRANSLATION_COMMON, "deepnorm": True}
_MAGNETO: Preset = {**_TRANSLATION_COMMON, "subln": True}
_OFFICIAL: Preset = {
    **_TRANSLATION_COMMON,
    "torchscale_compatible": True,
    "subln": False,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
}

TRANSLATION: dict[str, Preset] = {
    "mt_deepnorm": {**_DEEPNORM, **_TRANSLATION_BASE},
    "mt_deepnorm_small": {**_DEEPNORM, **_TRANSLATION_SMALL},
    "mt_deepnorm_base": {**_DEEPNORM, **_TRANSLATION_BASE},
    "mt_deepnorm_large": {**_DEEPNORM, **_TRANSLATION_LARGE},
    "mt_magneto": {**_MAGNETO, **_TRANSLATION_BASE},
    "mt_magneto_small": {**_MAGNETO, **_TRANSLATION_SMALL},
    "mt_magneto_base": {**_MAGNETO, **_TRANSLATION_BASE},
    "mt_magneto_large": {**_MAGNETO, **_TRANSLATION_LARGE},
    "mt_base": {**_OFFICIAL, **_TRANSLATION_BASE},
}
