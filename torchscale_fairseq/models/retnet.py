"""RetNet: TorchScale's language models from ``retnet_base`` to ``retnet_65b`` and ``retnet_small``, and the translation
models ``mt_retnet``."""

from fairseq.models import register_model

from torchscale_fairseq.core.config import RetNetConfig, RetNetEncoderDecoderConfig

from ._decoder import RetNetTextDecoder
from ._options import fairseq_dataclass
from ._presets import RETENTION, RETENTION_TRANSLATION
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


for _family, _presets, _options, _from_task in (
    (RetNetLanguageModel, RETENTION, LanguageModelOptions, FROM_TASK),
    (RetNetTranslationModel, RETENTION_TRANSLATION, TranslationOptions, FROM_TRANSLATION_TASK),
):
    for _name, _preset in _presets.items():
        register_model(
            _name,
            dataclass=fairseq_dataclass(
                f"{_name}_options", _family.config_class, _preset, _options, from_task=_from_task
            ),
        )(type(_name, (_family,), {"preset": _preset, "__doc__": _family.__doc__}))
