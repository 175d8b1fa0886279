"""Errors that the user can mend end in one sentence on stderr, without a traceback."""

import shutil
import sys
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
RESUMING = ("--optimizer", "--criterion", "--lr-scheduler")
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
from torchscale_fairseq.hooks.errors.noting import Noting
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


def test_sentences(stock_checkpoint: Path, translation_data: Path, tmp_path: Path) -> None:
    """One process runs all commands; each sentence need only begin as it stands here."""
    nowhere, raw, run = tmp_path / "nowhere", tmp_path / "raw", tmp_path / "run"
    raw.mkdir()
    resumed = f"the checkpoint {tmp_path}/checkpoint_last.pt was trained with"
    shutil.copy(stock_checkpoint, tmp_path)
    words = training(translation_data, run)
    language = [raw, *TINY_LANGUAGE_MODEL, *FEW_UPDATES, "--save-dir", run]
    french = [*LANGUAGES[:-1], "fr"]
    cases = [
        (without("--batch-size", words), "the size of a batch is missing: give --max-tokens or --batch-size "),
        (without("--optimizer", words), "the optimizer is missing: give --optimizer (in Hydra, optimizer._name), "),
        (
            ["unused", "--arch", "transformer_lm", "--task", "translation", "--optimizer", "adam"],
            "--arch transformer_lm does not fit --task translation, which has no --tokens-per-sample; give ",
        ),
        (training(nowhere, run), f"the data folder {nowhere} does not exist"),
        (training(nowhere, run, *LANGUAGES), f"the data folder {nowhere} does not exist"),
        (training(raw, run), f"{raw} has no training data of a pair of languages: {TO_BINARISE}"),
        (training(raw, run, *LANGUAGES), f"{raw} has no dict.en.txt: {TO_BINARISE}"),
        (language, f"{raw} has no dict.txt: {TO_BINARISE}"),
        ([*words, *french], f"{translation_data} has no data in the language fr, but in de, en: mend --source-lang"),
        ([*words, "--source-lang", "fr"], f"--source-lang fr is not in {translation_data}, whose languages are "),
        ([*words, "--valid-subset", "vlid"], f"{translation_data} has no split 'vlid', but test, train, valid"),
        ([*words, "--log-file", nowhere / "log"], f"{nowhere}/log: No such file or directory"),
        (["--optimizer", "sgd"], f"{resumed} --optimizer adam, and this run has sgd; resume with that one, or add "),
        (
            ["--criterion", "label_smoothed_cross_entropy"],
            f"{resumed} --criterion cross_entropy, and this run has label_smoothed_cross_entropy; resume with that one",
        ),
        (
            ["--lr-scheduler", "reduce_lr_on_plateau"],
            f"{resumed} --lr-scheduler fixed, and this run has reduce_lr_on_plateau, which cannot resume ",
        ),
    ]
    resuming = training(translation_data, tmp_path, "--max-update", 8)
    commands = [["train", *(resuming + given if given[0] in RESUMING else given)] for given, _ in cases]
    sentences = sentences_of(commands)
    for sentence, (_, begin) in zip(sentences, cases, strict=True):
        assert sentence is not None and sentence.startswith(begin)


def test_choice_that_is_not_there(tmp_path: Path) -> None:
    done = run_fairseq("train", training(tmp_path, tmp_path, "--arch", "mt_depnorm"))
    error = "argument --arch/-a: there is no 'mt_depnorm'; did you mean mt_deepnorm?"
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
        ("+optimization.max_updat=3", "there is no key optimization.max_updat; did you mean max_update?"),
        pytest.param(
            "optimizer._name=adamm",
            "there is no optimizer 'adamm'; did you mean adam? (optimizer._name)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "task._name=translatoin",
            "there is no task 'translatoin'; did you mean translation? (task._name)",
            marks=pytest.mark.slow,
        ),
        ("+model.encoder_layer=2", "mt_deepnorm_small has no option 'encoder_layer'; did you mean encoder_layers?"),
    ],
)
def test_hydra(word: str, sentence: str, translation_data: Path, tmp_path: Path) -> None:
    done = run_fairseq("hydra_train", [*HYDRA, f"task.data={translation_data}", word], cwd=tmp_path)
    assert_sentence(done, "fairseq-hydra_train", sentence)


@pytest.mark.parametrize("kept", [pytest.param(False, marks=pytest.mark.slow), True])
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


def test_command_that_is_run_as_a_module(translation_data: Path, tmp_path: Path) -> None:
    """A sentence that depends on a function of the command."""
    words = without("--batch-size", training(translation_data, tmp_path, "--user-dir", USER_DIR))
    done = run_program([sys.executable, "-m", "fairseq_cli.train", *words])
    assert done.last_line.startswith("train.py: the size of a batch is missing: give --max-tokens or --batch-size ")
    assert done.returncode == 1 and "Traceback" not in done.output


@pytest.mark.slow
def test_several_processes(tmp_path: Path) -> None:
    words = training(tmp_path / "nowhere", tmp_path, "--distributed-world-size", 2, "--user-dir", USER_DIR)
    done = run_program(["fairseq-train", *words])
    assert "Please install tensorboardX" not in done.output
    assert (done.returncode, done.stderr) == (
        1,
        f"fairseq-train: the data folder {tmp_path / 'nowhere'} does not exist\n",
    )
