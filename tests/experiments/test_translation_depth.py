"""Many of fairseq's commands side by side, and which of them the comparison of translation models runs."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts.experiments import fairseq_jobs, translation_depth
from tests.fairseq_cli import REPOSITORY, TOOL, run_program

LOG = """\
num. shared model params: 1,000 (num. trained: 1,000)
num. expert model params: 234 (num. trained: 234)
train | {"train_nll_loss": "3.5", "train_num_updates": "700"}
valid | {"valid_loss": "5.25", "valid_nll_loss": "%s"}
"""


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, where a job's command is one of Python."""
    monkeypatch.setattr(fairseq_jobs, "runnable", lambda command: [sys.executable, "-c", *command])
    return fairseq_jobs


@pytest.fixture
def study(jobs: ModuleType) -> ModuleType:
    return translation_depth


def test_jobs_start_with_the_most_expensive_and_then_those_that_follow(jobs: ModuleType, tmp_path: Path) -> None:
    ended = []

    def done(job: Any, status: int) -> Iterator[Any]:
        ended.append((job.name, status, (tmp_path / job.name).read_text()))
        if job.name == "b":
            yield jobs.Job("c", ("print('third')",), tmp_path / "c", 2.0, done)

    code = {"a": ("raise SystemExit(3)", 1.0), "b": ("print('first')", 3.0)}
    jobs.Jobs(1, 0).run(jobs.Job(name, (line,), tmp_path / name, cost, done) for name, (line, cost) in code.items())
    assert ended == [("b", 0, "first\n"), ("c", 0, "third\n"), ("a", 3, "")]


def test_jobs_end_at_the_deadline(jobs: ModuleType, tmp_path: Path) -> None:
    pool = jobs.Jobs(1, 0, time.monotonic() + 0.5)
    slow = [jobs.Job(name, ("import time; time.sleep(60)",), tmp_path / name, 1.0, pytest.fail) for name in "ab"]
    pool.run(slow)
    assert pool.left == ["a", "b"]


def test_result_is_read_from_the_log(jobs: ModuleType) -> None:
    assert jobs.training_result(LOG % "4.75") == {"nll": 4.75, "training_nll": 3.5, "parameters": 1234}
    assert jobs.training_result("") == {"nll": None, "training_nll": None, "parameters": 0}


def options(work_dir: Path, layers: int) -> argparse.Namespace:
    rates = {layers: (1e-3, 2e-3, 4e-3)}
    sizes = {"updates": 8, "max_tokens": 512, "gpus": 0}
    return argparse.Namespace(data=Path("data"), work_dir=work_dir, layers=[layers], rates=rates, **sizes)


def finish(study: Any, job: Any, nll: str) -> list[Any]:
    """Let a job end; those that follow."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_text(LOG % nll if "generate" not in job.name else "BLEU = 12.34 (detail)\n")
    return list(job.done(job, 0))


def test_second_seed_waits_for_the_best_rate(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "ARCHITECTURES", {"mt_retnet": study.ARCHITECTURES["mt_retnet"]})
    running = study.Study(options(tmp_path, 3))
    first = list(running.jobs())
    assert [job.name for job in first] == ["mt_retnet-3-0.001-1", "mt_retnet-3-0.002-1", "mt_retnet-3-0.004-1"]
    assert finish(running, first[0], "5.0") == finish(running, first[1], "4.0") == []
    following = finish(running, first[2], "4.5")
    assert [job.name for job in following] == [
        "mt_retnet-3-0.002-2",
        "mt_retnet-3-0.004-2",
        "mt_retnet-3-0.002-1-generate",
    ]
    assert following[1].cost < following[0].cost < following[2].cost, "translations first, the neighbour last"
    assert finish(running, following[2], "") == []
    resumed = study.Study(options(tmp_path, 3))
    assert resumed.results["mt_retnet-3-0.002-1"]["bleu"] == 12.34
    assert [job.name for job in resumed.jobs()] == ["mt_retnet-3-0.002-2", "mt_retnet-3-0.004-2"]


def test_both_seeds_of_the_longest_trainings_start_at_once(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "ARCHITECTURES", {"mt_xmoe": study.ARCHITECTURES["mt_xmoe"]})
    names = [job.name for job in study.Study(options(tmp_path, 24)).jobs()]
    assert len(names) == 6 and sum(name.endswith("-2") for name in names) == 3


def test_published_report_is_of_this_script(study: ModuleType) -> None:
    report = json.loads((REPOSITORY / "docs/claims/translation_depth.json").read_text())
    assert shlex.split(report["command"])[2] == "scripts.experiments.translation_depth"
    first = {(run["architecture"], run["layers"], run["learning_rate"]) for run in report["runs"] if run["seed"] == 1}
    planned = {
        (name, layers, rate) for name in study.ARCHITECTURES for layers in study.RATES for rate in study.RATES[layers]
    }
    assert first == planned


@pytest.mark.slow
def test_whole_comparison_in_its_small_form(tmp_path: Path) -> None:
    corpus, data = tmp_path / "corpus", tmp_path / "data"
    sizes = ["--train-pairs", 600, "--valid-pairs", 12, "--test-pairs", 12]
    run_program([*TOOL, "data", "cldr-corpus", corpus, *sizes]).check()
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", corpus / split)]
    prepare = [*TOOL, "data", "prepare-translation", *splits, "--output", data]
    run_program([*prepare, "--source-lang", "en", "--target-lang", "de", "--vocab-size", 400]).check()
    words = ["--small", "--data", data, "--work-dir", tmp_path / "work", "--output", tmp_path, "--processes", 2]
    run_program([sys.executable, "-m", "scripts.experiments.translation_depth", *words], timeout=1200).check()
    report = json.loads((tmp_path / "translation_depth.json").read_text())
    assert len(report["runs"]) == 14 and not report["left_out"]
    assert all(run["nll"] > 0 and run["bleu"] is not None for run in report["runs"])
