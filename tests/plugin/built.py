"""Registered models, built tiny in this process without data or a task."""

import argparse
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.models.transformer import base_architecture

from tests.plugin.shrunk import shrunk

OF_THE_TASK = {
    "max_source_positions": 32,
    "max_target_positions": 32,
    "tokens_per_sample": 32,
    "add_bos_token": False,
}


def words(count: int = 24) -> Dictionary:
    """fairseq's four special symbols, and words up to this many entries."""
    dictionary = Dictionary()
    for index in range(count - len(dictionary)):
        dictionary.add_symbol(f"w{index}")
    return dictionary


def tiny(arch: str, dictionary: Dictionary, *flags: str) -> Any:
    """A model of one narrow layer per side, its weights from a fixed seed."""
    torch.manual_seed(0)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    if arch == "transformer":
        return MODEL_REGISTRY[arch].build_model(_stock_options(*flags), task)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    gen_parser_from_dataclass(parser, MODEL_DATACLASS_REGISTRY[arch]())
    options = parser.parse_args([*shrunk(arch)[2:], *flags])
    return MODEL_REGISTRY[arch].build_model(argparse.Namespace(arch=arch, **{**OF_THE_TASK, **vars(options)}), task)


def _stock_options(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    MODEL_REGISTRY["transformer"].add_args(parser)
    sides = ("encoder", "decoder")
    sizes = {"layers": 1, "embed-dim": 16, "ffn-embed-dim": 32, "attention-heads": 2}
    small = [word for side in sides for name, size in sizes.items() for word in (f"--{side}-{name}", str(size))]
    options = parser.parse_args([*small, *flags])
    given = argparse.Namespace(**{name: value for name, value in vars(options).items() if value is not None})
    base_architecture(given)
    return given
