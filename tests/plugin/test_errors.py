"""Errors that the user can mend end in one sentence on stderr, without a traceback."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fairseq_cli import (
    FEW_UPDATES,
    TINY_LANGUAGE_MODEL,
    USER_DIR,
    Finished,
    run_beside_fairseq,
    run_fairseq,
    run_program,
)
from tests.plugin.sentences import sentences_of, training

LANGUAGES = ["--source-lang", "en", "--target-lang", "de"]
HYDRA = ["--config-dir", USER_DIR / "config", "--config-name", "mt_deepnorm_small"]
TO_BINARISE = (
    "it is not a folder of data for this task; fairseq-preprocess makes one, and its --destdir is the folder to name"
)
INTERRUPTED = """
import sys
from fairseq_cli import train
def interrupt(*args):
    raise KeyboardInterrupt
train.train = interrupt
sys.argv = ["fairseq-train", *{words!r}]
train.cli_main()
"""
NOTING = """
import multiprocessing, sys, types
from pathlib import Path
from unittest import mock
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.noting import Noting
def fail(sentence):
    raise InputError(sentence)
fail.__module__ = "command"
sys.modules["command"] = types.SimpleNamespace(fail=fail)
note = Path({path!r})
with mock.patch.object(multiprocessing, "parent_process", object):
    for sentence in ("first", "second"):
        try:
            Noting(fail, note)(sentence)
        except InputError:
            print(note.read_text())
"""


def assert_sentence(done: Finished, program: str, sentence: str, code: int = 1) -> None:
    assert (done.returncode, done.last_line) == (code, f"{program}: {sentence}")
    assert "Traceback" not in done.output


def without(option: str, words: list[Any]) -> list[Any]:
    start = words.index(option)
    return words[:start] + words[start + 2 :]


def test_options_that_are_missing(translation_data: Path, tmp_path: Path) -> None:
    words = training(translation_data, tmp_path)
    batch, optimizer = sentences_of([["train", *without(option, words)] for option in ("--batch-size", "--optimizer")])
    assert batch is not None and batch.startswith("the size of a batch is missing: give --max-tokens or --batch-size ")
    assert optimizer is not None and optimizer.startswith(
        "the optimizer is missing: give --optimizer (in Hydra, optimizer._name), "
    )


def test_data_that_is_not_there_or_not_binarised(translation_data: Path, tmp_path: Path) -> None:
    nowhere, raw = tmp_path / "nowhere", tmp_path / "raw"
    raw.mkdir()
    expected = {
        (nowhere,): f"the data folder {nowhere} does not exist",
        (nowhere, *LANGUAGES): f"the data folder {nowhere} does not exist",
        (raw,): f"{raw} has no training data of a pair of languages: {TO_BINARISE}",
        (raw, *LANGUAGES): f"{raw} has no dict.en.txt: {TO_BINARISE}",
        (translation_data, *LANGUAGES[:-1], "fr"): f"{translation_data} has no data in the language fr, but in de, en: "
        "mend --source-lang or --target-lang",
        (translation_data, "--valid-subset", "vlid"): f"{translation_data} has no split 'vlid', but test, train, valid",
    }
    commands = [["train", *training(data, tmp_path / "run", *more)] for data, *more in expected]
    of_language = ["train", raw, *TINY_LANGUAGE_MODEL, *FEW_UPDATES, "--save-dir", tmp_path / "run"]
    assert sentences_of([*commands, of_language]) == [*expected.values(), f"{raw} has no dict.txt: {TO_BINARISE}"]


def test_resuming_with_something_else(stock_checkpoint: Path, translation_data: Path, tmp_path: Path) -> None:
    shutil.copy(stock_checkpoint, tmp_path)
    expected = {
        (
            "--optimizer",
            "sgd",
        ): "--optimizer adam, and this run has sgd; resume with that one, or add --reset-optimizer",
        ("--criterion", "label_smoothed_cross_entropy"): "--criterion cross_entropy, and this run has "
        "label_smoothed_cross_entropy; resume with that one, or add --reset-optimizer",
        (
            "--lr-scheduler",
            "reduce_lr_on_plateau",
        ): "--lr-scheduler fixed, and this run has reduce_lr_on_plateau, which "
        "cannot resume from its state; resume with that one, or add --reset-lr-scheduler",
    }
    commands = [["train", *training(translation_data, tmp_path, *more, "--max-update", 8)] for more in expected]
    for sentence, end in zip(sentences_of(commands), expected.values(), strict=True):
        begin = f"the checkpoint {tmp_path}/checkpoint_last.pt was trained with "
        assert sentence is not None and sentence.startswith(begin + end)


def test_files_that_are_not_there(translation_data: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pt"
    assert sentences_of(
        [
            ["generate", translation_data, "--path", missing],
            ["train", *training(translation_data, tmp_path, "--log-file", missing / "log")],
        ]
    ) == [
        f"Model file not found: {missing} (TORCHSCALE_TRACEBACK=1 shows where)",
        f"{missing}/log: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--arch", "mt_depnorm", "argument --arch/-a: there is no 'mt_depnorm'; did you mean mt_deepnorm?"),
        ("--arch", "zzzz", "argument --arch/-a: there is no 'zzzz'; --help lists all"),
    ],
)
def test_choices_that_are_not_there(option: str, value: str, error: str, tmp_path: Path) -> None:
    done = run_fairseq("train", training(tmp_path, tmp_path, option, value))
    assert (done.returncode, done.stderr) == (2, f"fairseq-train: error: {error}\n")


def test_command_prints_the_sentence_or_by_a_switch_the_traceback(tmp_path: Path) -> None:
    words = training(tmp_path / "nowhere", tmp_path)
    done = run_fairseq("train", words)
    assert (done.returncode, done.stderr) == (
        1,
        f"fairseq-train: the data folder {tmp_path / 'nowhere'} does not exist\n",
    )
    done = run_fairseq("train", words, environment={"TORCHSCALE_TRACEBACK": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("model._name=mt_depnorm", "there is no model 'mt_depnorm'; did you mean mt_deepnorm? (model._name)"),
        ("optimizer._name=adamm", "there is no optimizer 'adamm'; did you mean adam? (optimizer._name)"),
        ("task._name=translatoin", "there is no task 'translatoin'; did you mean translation? (task._name)"),
        ("+model.encoder_layer=2", "mt_deepnorm_small has no option 'encoder_layer'; did you mean encoder_layers?"),
    ],
)
def test_hydra(word: str, sentence: str, translation_data: Path, tmp_path: Path) -> None:
    done = run_fairseq("hydra_train", [*HYDRA, f"task.data={translation_data}", word], cwd=tmp_path)
    assert_sentence(done, "fairseq-hydra_train", sentence)


@pytest.mark.parametrize("kept", [False, True])
def test_ctrl_c_says_whether_a_checkpoint_is_kept(
    kept: bool, stock_checkpoint: Path, translation_data: Path, tmp_path: Path
) -> None:
    last = tmp_path / "checkpoint_last.pt"
    if kept:
        shutil.copy(stock_checkpoint, last)
        sentence = f"{last} is kept, and the same command resumes from it"
    else:
        sentence = f"there is no {last}, so the same command starts from the beginning"
    words = [*map(str, training(translation_data, tmp_path, "--max-update", 8)), "--user-dir", str(USER_DIR)]
    done = run_beside_fairseq(INTERRUPTED.format(words=words), plugin=False)
    assert_sentence(done, "fairseq-train", f"interrupted by Ctrl-C; {sentence}", 130)


def test_process_that_a_command_starts_leaves_its_sentence(tmp_path: Path) -> None:
    done = run_beside_fairseq(NOTING.format(path=str(tmp_path / "note")), plugin=True).check()
    assert done.stdout.split() == ["first", "first"]


@pytest.mark.slow
def test_several_processes(tmp_path: Path) -> None:
    words = training(tmp_path / "nowhere", tmp_path, "--distributed-world-size", 2, "--user-dir", USER_DIR)
    done = run_program(["fairseq-train", *words])
    assert "Please install tensorboardX" not in done.output
    assert (done.returncode, done.stderr) == (
        1,
        f"fairseq-train: the data folder {tmp_path / 'nowhere'} does not exist\n",
    )
