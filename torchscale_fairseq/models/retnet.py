"""RetNet: TorchScale's language models from ``retnet_base`` to ``retnet_65b`` and ``retnet_small``, and the translation
models ``mt_retnet``."""

from torchscale_fairseq.core.config import RetNetConfig, RetNetEncoderDecoderConfig

from ._decoder import RetNetTextDecoder
from ._presets import RETENTION, RETENTION_TRANSLATION
from ._registration import register_presets
from .gpt import FROM_TASK, LanguageModel, LanguageModelOptions
from .translation import FROM_TASK as FROM_TRANSLATION_TASK
from .translation import TranslationModel, TranslationOptions


class RetNetLanguageModel(LanguageModel):
    """A decoder with retention for fairseq's language_modeling task; each preset is a subclass."""

    config_class = RetNetConfig
    decoder_class = RetNetTextDecoder


class RetNetTranslationModel(TranslationModel):
    """An encoder with attention and a decoder with retention for fairseq's translation tasks; each preset is a
    subclass."""

    config_class = RetNetEncoderDecoderConfig
    decoder_class = RetNetTextDecoder


register_presets(RetNetLanguageModel, RETENTION, RetNetConfig, LanguageModelOptions, FROM_TASK)
register_presets(
    RetNetTranslationModel,
    RETENTION_TRANSLATION,
    RetNetEncoderDecoderConfig,
    TranslationOptions,
    FROM_TRANSLATION_TASK,
)
