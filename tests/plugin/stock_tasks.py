"""Tiny data and options for every task of fairseq and of this package that our models train with."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import make_builder
from fairseq.dataclass import initialize
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import setup_task
from omegaconf import OmegaConf

SPLITS = {"train": 24, "valid": 8}
WORDS = [f"w{index}" for index in range(12)]
LANGUAGES = ("en", "de")
LENGTH = 32

TASKS: Mapping[str, str] = {
    "translation": "--source-lang en --target-lang de",
    "translation_multi_simple_epoch": "--lang-pairs en-de --langs en,de",
    "translation_from_pretrained_bart": "--langs en,de --source-lang en --target-lang de",
    "translation_from_pretrained_xlm": "--source-lang en --target-lang de",
    "online_backtranslation": "--mono-langs en,de --valid-lang-pairs en-de",
    "denoising": f"--tokens-per-sample {LENGTH} --mask 0.3 --mask-length span-poisson --replace-length 1",
    "multilingual_denoising": f"--tokens-per-sample {LENGTH} --mask 0.3 --langs en,de",
    "span_masked_lm": f"--tokens-per-sample {LENGTH}",
    "dummy_mt": "--dict-size 100 --dataset-size 20 --src-len 10 --tgt-len 10",
    "language_modeling": f"--tokens-per-sample {LENGTH}",
    "multilingual_language_modeling": f"--tokens-per-sample {LENGTH} --langs en,de",
    "dummy_lm": f"--dict-size 100 --dataset-size 20 --tokens-per-sample {LENGTH}",
    "masked_lm": f"--tokens-per-sample {LENGTH}",
    "multilingual_masked_lm": f"--tokens-per-sample {LENGTH}",
    "cross_lingual_lm": f"--tokens-per-sample {LENGTH} --monolingual-langs en,de --masked-lm-only",
    "sentence_prediction": "--num-classes 2 --init-token 0 --separator-token 2",
    "sentence_ranking": "--num-classes 2 --init-token 0 --separator-token 2",
    "dummy_masked_lm": f"--dict-size 100 --dataset-size 20 --tokens-per-sample {LENGTH}",
}
"""Options of the tasks whose data ``stock_data`` writes: all that take text but pretraining, which has tests of its
own."""

CRITERIONS: Mapping[str, str] = {
    "label_smoothed_cross_entropy_with_rdrop": "--rdrop-alpha 1",
    "composite_loss": "--underlying-criterion cross_entropy",
}
"""Options of criterions that need some."""


def words_of(task: str, data: Path) -> list[str]:
    """The part of a command line that names the task, its data and options."""
    made_up = task.startswith("dummy_")
    return [*([] if made_up else [str(data / _folder(task))]), "--task", task, *shlex.split(TASKS[task])]


def built(words: Sequence[str]) -> tuple[Any, Any, Any]:
    """The configuration, the task and a fresh model of fairseq-train's arguments, in this process."""
    parsed = options.parse_args_and_arch(options.get_training_parser(), list(words))
    cfg = convert_namespace_to_omegaconf(parsed)
    initialize.add_defaults(cfg)
    task = setup_task(cfg.task)
    return cfg, task, task.build_model(cfg.model)


def save_untrained(words: Sequence[str], folder: Path) -> tuple[Any, Any, Any]:
    """Write what fairseq-train would before the first update to checkpoint_best.pt, and return what ``built`` does."""
    cfg, task, model = built(words)
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "task_state": task.state_dict(),
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }
    torch.save(state, folder / "checkpoint_best.pt")
    return cfg, task, model


def stock_data(folder: Path) -> Path:
    """Write 24 training and 8 validation sentences in the form of each task, in folders that ``words_of`` knows."""
    words = Dictionary()
    for word in [*WORDS, "__en__", "__de__"]:  # online_backtranslation's marks of languages
        words.add_symbol(word)
    labels = Dictionary()
    for label in ("no", "yes"):
        labels.add_symbol(label)
    sentences = {split: _sentences(words, size) for split, size in SPLITS.items()}
    yes_or_no = {split: [[labels.nspecial + i % 2] for i in range(size)] for split, size in SPLITS.items()}
    _binarise(folder / "mono", sentences, words)
    for language in LANGUAGES:
        _binarise(folder / "languages" / language, sentences, words)
        _binarise(folder / "pairs", sentences, words, f".en-de.{language}", f"dict.{language}.txt")
        _binarise(folder / "corpora", sentences, words, f".{language}")
        _binarise(folder / "back" / language, sentences, words)
        _binarise(folder / "back", sentences, words, f".en-de.{language}")
    shutil.copy(folder / "mono" / "dict.txt", folder / "languages" / "dict.txt")
    for index in range(3):
        _binarise(folder / "inputs" / f"input{index}", sentences, words)
    _binarise(folder / "inputs" / "label", yes_or_no, labels)
    for split, size in SPLITS.items():
        (folder / "inputs" / "label" / f"{split}.label").write_text("".join(f"{i % 2}\n" for i in range(size)))
    return folder


def _folder(task: str) -> str:
    special = {
        "online_backtranslation": "back",
        "cross_lingual_lm": "corpora",
        "sentence_prediction": "inputs",
        "sentence_ranking": "inputs",
    }
    if task in special:
        return special[task]
    if task.startswith("multilingual"):
        return "languages"
    return "pairs" if task.startswith("translation") else "mono"


def _sentences(dictionary: Dictionary, count: int) -> list[list[int]]:
    """Sentences of two to eight words."""
    first = dictionary.index(WORDS[0])
    return [[first + (7 * i + 5 * j) % len(WORDS) for j in range(2 + i % 7)] for i in range(count)]


def _binarise(
    folder: Path,
    sentences: Mapping[str, list[list[int]]],
    dictionary: Dictionary,
    suffix: str = "",
    dictionary_file: str = "dict.txt",
) -> None:
    """Write what fairseq-preprocess would."""
    folder.mkdir(parents=True, exist_ok=True)
    dictionary.save(str(folder / dictionary_file))
    for split, rows in sentences.items():
        builder = make_builder(str(folder / f"{split}{suffix}.bin"), impl="mmap", vocab_size=len(dictionary))
        for row in rows:
            builder.add_item(torch.IntTensor([*row, dictionary.eos()]))
        builder.finalize(str(folder / f"{split}{suffix}.idx"))
