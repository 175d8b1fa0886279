"""--ddp-backend fully_sharded when a process fails: the job ends soon, with that process's message."""

import time
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.distributed.fully_sharded import SHARDED
from tests.distributed.short_training import words
from tests.fairseq_cli import TORCHRUN, USER_DIR, run_program, tiny_language_data

FAILS = """
import os, sys
from fairseq_cli import train
from fairseq.tasks.language_modeling import LanguageModelingTask
step = LanguageModelingTask.train_step
def failing(self, sample, model, criterion, optimizer, update_num, **more):
    if os.environ["RANK"] == "1" and update_num == 2:
        raise ValueError("a bad batch in process 1")
    return step(self, sample, model, criterion, optimizer, update_num, **more)
LanguageModelingTask.train_step = failing
sys.argv[0] = "fairseq-train"
train.cli_main()
"""
SOON = 150
"""Seconds, most of which two processes take to start; a process that waits for another would wait half an hour."""


@pytest.mark.slow
def test_one_failing_process_ends_the_job(tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text(FAILS)
    arguments = [*words(tiny_language_data(tmp_path), tmp_path / "run"), *SHARDED, "--user-dir", USER_DIR]
    start = time.monotonic()
    done = run_program([*TORCHRUN, "--standalone", "--nproc_per_node", "2", program, *arguments], timeout=SOON)
    assert done.returncode == 1 and "a bad batch in process 1" in done.output
    assert time.monotonic() - start < SOON
