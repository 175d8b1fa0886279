"""The fairseq models as a case of the official wrappers describes them."""

import dataclasses
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import build_model
from torch import nn

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.parity.vectors import Case
from torchscale_fairseq.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, RetNetConfig

ARCHITECTURES: dict[str, tuple[str, type, dict[str, Any]]] = {
    "LanguageModel": ("lm_base", DecoderConfig, {}),
    "RetNetLanguageModel": ("retnet_base", RetNetConfig, {"torchscale_compatible": True}),
    "BertModel": ("mlm_base", EncoderConfig, {}),
    "TranslationModel": ("mt_base", EncoderDecoderConfig, {"encoder_embed_path": None, "decoder_embed_path": None}),
}
ALSO_READ = {"tokens_per_sample", "pooler_activation_fn", "pooler_dropout"}


def build(meta: dict[str, Any]) -> nn.Module:
    """The model through fairseq's registry, as initialised."""
    facts = meta["build"]
    dictionary = Dictionary()
    for i in range(facts["embed_tokens"][0] - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    arch, config_class, more = ARCHITECTURES[facts["cls"]]
    read = {f.name for f in dataclasses.fields(config_class)} | ALSO_READ
    given = {k: v for k, v in meta["config_kwargs"].items() if k in read}
    args = Namespace(arch=arch, **{**given, **more})
    model = build_model(args, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary))
    if "classification_head" in facts:
        model.register_classification_head(*facts["classification_head"])
    return model


def loaded(case: Case) -> Any:
    """The case's model with its parameters, as a checkpoint of the official code would bring them."""
    model = build(case.meta)
    model.load_state_dict(case.state(), strict=True)
    return model.eval()
