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


WITHOUT_MEMORY = """
import os, torch
from torchscale_fairseq import plugin
plugin.register()
from fairseq.tasks.fairseq_task import FairseqTask
from torchscale_fairseq.hooks.training import step_graphs, trainer
trainer.can_record = lambda *_: True
step_graphs.StepGraphs._recording_of = lambda *_: None
step, batches = FairseqTask.train_step, []
def train_step(*arguments, **keywords):
    batches.append(1)
    if os.environ["RANK"] == "1" and len(batches) > 6:
        raise torch.OutOfMemoryError("out of memory")
    return step(*arguments, **keywords)
FairseqTask.train_step = train_step
"""
"""The second process has memory for its first update of five batches, and for the stand-in of the next. Gradients are
summed as on a GPU, where a process that lacks memory takes part."""


def test_a_stand_in_does_not_count_if_all_other_batches_run_out_of_memory(tmp_path: Path) -> None:
    """The second update is that of the five batches of four rows that the first process has."""
    given = [*words(tiny_language_data(tmp_path), tmp_path / "two"), *ONE_UPDATE, "--update-freq", "5", "--no-save"]
    given += ["--max-update", "2", "--log-interval", "1"]
    done = run_processes(2, "train", given, before=WITHOUT_MEMORY, timeout=60)
    assert figures(done.check().output, 1)["bsz"] == 20


def figures(output: str, update: int = 0) -> dict[str, float]:
    """Of an update, counted from 0."""
    lines = re.findall(r"\| train_inner \| (\{.*\})", output)
    assert len(lines) > update, output
    return {name: float(value) for name, value in json.loads(lines[update]).items()}
