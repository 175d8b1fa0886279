"""Registered models and what fairseq's command line makes of their flags, without a command."""

import argparse
from functools import cache
from types import SimpleNamespace
from typing import Any

from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY

from torchscale_fairseq.core.config import (
    BEiT3Config,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    LongNetSpeechConfig,
    LongViTConfig,
    RetNetConfig,
    RetNetEncoderDecoderConfig,
    RetNetSpeechConfig,
    SlideEncoderConfig,
    SpeechConfig,
    SpeechOptions,
    ViTConfig,
)
from torchscale_fairseq.models._options import core_config
from torchscale_fairseq.models.beit3 import ImageTextModel
from torchscale_fairseq.models.bert import MaskedLanguageModel
from torchscale_fairseq.models.gpt import LanguageModel
from torchscale_fairseq.models.longvit import LongViTModel
from torchscale_fairseq.models.retnet import RetNetLanguageModel, RetNetTranslationModel
from torchscale_fairseq.models.slide_encoder import SlideEncoderModel
from torchscale_fairseq.models.speech import LongNetSpeechModel, RetNetSpeechModel, SpeechModel
from torchscale_fairseq.models.translation import TranslationModel
from torchscale_fairseq.models.vit import ViTModel

CONFIGS = {
    RetNetTranslationModel: RetNetEncoderDecoderConfig,
    RetNetLanguageModel: RetNetConfig,
    TranslationModel: EncoderDecoderConfig,
    LanguageModel: DecoderConfig,
    MaskedLanguageModel: EncoderConfig,
    ImageTextModel: BEiT3Config,
    LongViTModel: LongViTConfig,
    ViTModel: ViTConfig,
    SlideEncoderModel: SlideEncoderConfig,
    RetNetSpeechModel: RetNetSpeechConfig,
    LongNetSpeechModel: LongNetSpeechConfig,
    SpeechModel: SpeechConfig,
}
OF_THE_TASK = {
    "max_source_positions": 1024,
    "max_target_positions": 1024,
    "tokens_per_sample": 1024,
    "img_size": 224,
    "patch_size": 16,
    "input_feat_per_channel": 80,
    "input_channels": 1,
    "ctc_weight": 0,
}
WORDS = 1000
CLASSES = 5


def config_class(arch: str) -> type:
    return next(config for family, config in CONFIGS.items() if issubclass(MODEL_REGISTRY[arch], family))


def dictionary(words: int = WORDS) -> Dictionary:
    result = Dictionary()
    for i in range(words - len(result)):
        result.add_symbol(f"w{i}")
    return result


def task(source: Dictionary | None = None, target: Dictionary | None = None) -> Any:
    shared = dictionary()
    return SimpleNamespace(
        source_dictionary=source or shared,
        target_dictionary=target or shared,
        num_classes=CLASSES,
        args=SimpleNamespace(max_source_positions=OF_THE_TASK["max_source_positions"]),
        data_cfg=SimpleNamespace(use_audio_input=False),
    )


@cache
def parser_of(arch: str) -> argparse.ArgumentParser:
    """fairseq's command line, as far as the model makes it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    gen_parser_from_dataclass(parser, MODEL_DATACLASS_REGISTRY[arch]())
    return parser


def parse(arch: str, *flags: str) -> argparse.Namespace:
    """What fairseq's command line makes of the flags."""
    lengths = OF_THE_TASK
    return argparse.Namespace(arch=arch, **{**lengths, **vars(parser_of(arch).parse_args(flags))})


def config_of(arch: str, *flags: str) -> Any:
    words = {} if config_class(arch) in (LongViTConfig, SlideEncoderConfig, ViTConfig) else {"vocab_size": WORDS}
    if issubclass(config_class(arch), SpeechOptions):
        words["max_source_positions"] = OF_THE_TASK["max_source_positions"]
    return core_config(parse(arch, *flags), config_class(arch), MODEL_REGISTRY[arch].preset, **words)
