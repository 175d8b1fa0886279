"""Experts of every kind of model, in two processes as in one, evaluated in one."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import FEW_UPDATES, run_fairseq, run_processes, tiny_language_data
from tests.plugin.mixtures import LANGUAGE, MASKED
from tests.plugin.shrunk import EXPERTS, shrunk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("expert-language-data"))


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("gpt_magneto_small", LANGUAGE),
        ("retnet_small", LANGUAGE),
        ("bert_magneto_small", [*MASKED, "--attention-dropout", "0"]),
    ],
    ids=["decoder", "retnet", "encoder"],
)
def test_trains_in_two_processes_and_evaluates_in_one(arch: str, flags: list[str], data: Path, tmp_path: Path) -> None:
    words = [data, *shrunk(arch), *FEW_UPDATES, *flags, *EXPERTS, "--cpu", "--dropout", "0", "--optimizer", "sgd"]
    words += ["--lr", "0.1", "--batch-size", "4", "--clip-norm", "0.5"]
    run_fairseq("train", [*words, "--update-freq", "2", "--save-dir", tmp_path / "one"]).check()
    run_processes(2, "train", [*words, "--save-dir", tmp_path / "two"]).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-6)
    path = ["--path", tmp_path / "two/checkpoint_last.pt", "--cpu", "--batch-size", "4"]
    if "bert" in arch:
        run_fairseq("validate", [data, *path, *MASKED[:4]]).check()
    else:
        output = run_fairseq("eval_lm", [data, *path, "--tokens-per-sample", "16"]).check().output
        assert re.search(r"Perplexity: \d", output)
