"""Repairs of stock fairseq's own tasks and criterions that fail with every model, one function per failure."""

import argparse
import contextlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.data import data_utils, indexed_dataset
from fairseq.data.legacy.masked_lm_dictionary import MaskedLMDictionary
from fairseq.tasks.sentence_prediction import SentencePredictionConfig

from torchscale_fairseq.core.errors import InputError


def load_masked_dictionaries(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--task cross_lingual_lm``, ``legacy_masked_lm`` and ``translation_from_pretrained_xlm`` cannot load a
    dictionary: the loader passes an argument that their class of dictionary does not take."""
    if "add_special_symbols" in inspect.signature(MaskedLMDictionary.__init__).parameters:
        return stock

    def load(cls: type, f: Any, add_special_symbols: bool = True) -> Any:
        dictionary = cls()
        dictionary.add_from_file(f)
        return dictionary

    return load


def give_bart_translation_its_options(stock: Any) -> Any:
    """``--task translation_from_pretrained_bart`` reads its options from ``args``, which a translation task has not
    had since its options became a dataclass."""
    return property(lambda self: self.cfg) if stock is None else stock


def let_sentence_ranking_have_a_length(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--task sentence_ranking`` reads ``--max-positions``, which only some architectures declare. The task now
    declares it for the others, with the default of ``sentence_prediction``."""
    if "--max-positions" in stock.__code__.co_consts:
        return stock

    def add_args(parser: argparse.ArgumentParser) -> None:
        stock(parser)
        with contextlib.suppress(argparse.ArgumentError):
            parser.add_argument("--max-positions", type=int, default=512, help="max tokens per example")

    return add_args


def name_missing_inputs_of_ranking(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--task sentence_ranking`` with fewer folders ``input1``, ``input2``, … than ``--num-classes`` ends with
    ``AttributeError: 'NoneType' object has no attribute 'sizes'``. Now the folder is named."""

    def load_dataset(self: Any, split: str, combine: bool = False, **more: Any) -> Any:
        for index in range(self.args.num_classes + 1):
            path = Path(self.args.data, f"input{index}", split)
            if not indexed_dataset.dataset_exists(str(path), impl=None):
                raise InputError(
                    f"{path.parent} has no split {split!r}: --num-classes ({self.args.num_classes}) needs the folders "
                    f"input0 to input{self.args.num_classes} in {self.args.data}, each made by fairseq-preprocess."
                )
        return stock(self, split, combine=combine, **more)

    return load_dataset


def heed_one_language(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--task translation`` ignores ``--source-lang`` without ``--target-lang``, and the reverse: it takes the pair
    that it finds in the data. Now the missing language is the other one of the pair, and a language outside of the
    pair is named."""

    def setup_task(cls: type, cfg: Any, **arguments: Any) -> Any:
        given = cfg.source_lang or cfg.target_lang
        if given is not None and None in (cfg.source_lang, cfg.target_lang):
            found = data_utils.infer_language_pair(utils.split_paths(cfg.data)[0])
            if None not in found:
                _complete_pair(cfg, given, found)
        return stock(cls, cfg, **arguments)

    return setup_task


def _complete_pair(cfg: Any, given: str, found: tuple[str, str]) -> None:
    flag = "--target-lang" if cfg.source_lang is None else "--source-lang"
    if given not in found:
        raise InputError(f"{flag} {given} is not in {cfg.data}, whose languages are {found[0]} and {found[1]}.")
    other = found[1 - found.index(given)]
    cfg.source_lang, cfg.target_lang = cfg.source_lang or other, cfg.target_lang or other


def classify_without_a_criterion() -> None:
    """``fairseq-validate --task sentence_prediction`` ends with "Interpolation key 'criterion.classification_head_name'
    not found" unless ``--criterion`` is given: the task takes options from a criterion that is in the checkpoint."""
    for name, default in (("classification_head_name", "sentence_classification_head"), ("regression_target", "false")):
        field = SentencePredictionConfig.__dataclass_fields__[name]
        if field.default == f"${{criterion.{name}}}":
            field.default = f"${{oc.select:criterion.{name},{default}}}"


def count_labels_before_training(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--task sentence_prediction`` with fewer ``--num-classes`` than labels ends in the first update with
    ``IndexError: Target 2 is out of bounds``, on a GPU with an assertion of CUDA; without the option it ends with an
    ``AssertionError``. Now both are named before training."""

    def setup_task(cls: type, cfg: Any, **arguments: Any) -> Any:
        if cfg.num_classes < 1:
            raise InputError("--task sentence_prediction needs --num-classes, the number of labels.")
        task = stock(cls, cfg, **arguments)
        labels = [] if cfg.regression_target else _labels(task.label_dictionary)
        if len(labels) > cfg.num_classes:
            raise InputError(
                f"--num-classes ({cfg.num_classes}) is less than the {len(labels)} labels in "
                f"{cfg.data}/label/dict.txt, such as {labels[0]}; give --num-classes {len(labels)}."
            )
        return task

    return setup_task


def _labels(dictionary: Any) -> list[str]:
    """Its symbols, without those that fairseq adds."""
    symbols = dictionary.symbols[dictionary.nspecial :]
    return [symbol for symbol in symbols if symbol != "<mask>" and not symbol.startswith("madeupword")]


def sample_languages_in_proportion(stock: type) -> type:
    """``--task multilingual_language_modeling`` with its default ``--multilang-sampling-alpha 1`` ends with an
    ``AssertionError``: a share of exactly 1 counts as too large to draw without replacement."""

    class ResamplingDataset(stock):
        def __init__(
            self, dataset: Any, weights: Any = None, replace: bool = True, size_ratio: float = 1.0, **more: Any
        ):
            if not replace and size_ratio == 1:
                size_ratio = math.nextafter(1, 0)  # rounds up to all of the samples
            super().__init__(dataset, weights, replace, size_ratio, **more)

    return ResamplingDataset


def leave_batches_as_they_are(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--criterion label_smoothed_cross_entropy_with_rdrop`` doubles a batch in place, so that ``--eval-bleu``, which
    translates the batch afterwards, ends with an ``IndexError``."""

    def duplicate_input(sample: dict[str, Any]) -> dict[str, Any]:
        copy = {name: {**value} if name == "net_input" else value for name, value in sample.items()}
        doubled: dict[str, Any] = stock(copy)
        return doubled

    return duplicate_input
