"""The experiment on SubLN in speech recognition: its commands, and what it reads from their logs."""

import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest

from scripts.experiments import fairseq_jobs, speech_subln
from tests.fairseq_cli import REPOSITORY

LOG = """\
num. shared model params: 1,000 (num. trained: 1,000)
valid | {"valid_loss": "5.25", "valid_nll_loss": "%s"}
Generate test with beam=5: WER: 12.50
"""


def test_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A training and a recognition for each model, which differ in SubLN alone; one that fails has no error rate."""
    commands = []

    def runnable(command: tuple[str, ...]) -> list[str]:
        commands.append(command)
        without = "++model.subln=false" in command
        return [sys.executable, "-c", f"print({LOG % 4.75!r}); raise SystemExit({int(without)})"]

    monkeypatch.setattr(fairseq_jobs, "runnable", runnable)
    monkeypatch.setattr(speech_subln, "has_matplotlib", lambda: False)
    (tmp_path / "config.yaml").touch()
    folders = ["--data", str(tmp_path), "--work-dir", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["speech_subln", "--small", *folders])
    speech_subln.conduct(speech_subln.parse_options())

    runs = json.loads((tmp_path / "out/speech_subln.json").read_text())["runs"]
    assert [(run["norm"], run["seed"], run["wer"]) for run in runs] == [
        ("SubLN", 1, 12.5),
        ("SubLN", 2, 12.5),
        ("pre-LN", 1, None),
        ("pre-LN", 2, None),
    ]
    assert {run["nll"] for run in runs} == {4.75}
    with_subln, without = (
        next(command for command in commands if f"++model.subln={value}" in command) for value in ("true", "false")
    )
    differing = {word.partition("=")[0] for word in set(with_subln) ^ set(without)}
    assert differing == {"++model.subln", "checkpoint.save_dir", "hydra.run.dir"}
    assert sum(command[0] == "fairseq-generate" for command in commands) == 2


def test_published_report_has_every_rate_and_seed() -> None:
    report = json.loads((REPOSITORY / "docs/claims/speech_subln.json").read_text())
    assert shlex.split(report["command"])[2] == "scripts.experiments.speech_subln"
    planned = itertools.product(speech_subln.NORMS, speech_subln.RATES, speech_subln.SEEDS)
    assert {(run["norm"], run["learning_rate"], run["seed"]) for run in report["runs"]} == set(planned)
