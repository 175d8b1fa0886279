"""Updates in which one of two processes has fewer batches than the other."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import words
from tests.fairseq_cli import run_fairseq, run_processes, tiny_language_data

ONE_UPDATE = ["--optimizer", "sgd", "--lr", "0.1", "--max-update", "1", "--dropout", "0", "--disable-validation"]
ONE_UPDATE += ["--log-format", "json", "--clip-norm", "0"]

GATHERED = """
from fairseq.tasks.fairseq_task import FairseqTask
FairseqTask.logging_outputs_can_be_summed = lambda *_: False
"""
"""Figures of batches are sent to all processes one by one."""


@pytest.mark.parametrize("before", ["", pytest.param(GATHERED, marks=pytest.mark.slow)], ids=["summed", "gathered"])
def test_all_batches_of_an_update_count(before: str, tmp_path: Path) -> None:
    """Nine batches in one update: five of the first process, four of the second."""
    data = tiny_language_data(tmp_path)
    one = run_fairseq("train", [*words(data, tmp_path / "one"), *ONE_UPDATE, "--update-freq", "9"]).check()
    given = [*words(data, tmp_path / "two"), *ONE_UPDATE, "--update-freq", "5"]
    two = run_processes(2, "train", given, before=before).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)
    expected, found = (figures(done.output) for done in (one, two))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert found["wpb"] == expected["wpb"] and found["bsz"] == expected["bsz"]


def figures(output: str) -> dict[str, float]:
    """Of the first update."""
    line = re.search(r"\| train_inner \| (\{.*\})", output)
    assert line is not None, output
    return {name: float(value) for name, value in json.loads(line[1]).items()}
