"""An interrupted experiment trains only what is left."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.experiments import common
from scripts.experiments.kept_results import KeptResults


@dataclass(frozen=True)
class Run:
    seed: int
    sizes: tuple[int, ...] = (2, 3)


def conduct(monkeypatch: pytest.MonkeyPatch, folder: Path, fails_at: int, device: str = "cpu") -> list[int]:
    """The seeds that were trained."""
    trained: list[int] = []

    def measure(run: Run, *_: object) -> common.Result:
        if run.seed == fails_at:
            raise KeyboardInterrupt
        trained.append(run.seed)
        return {"accuracy": 90.0 + run.seed}

    monkeypatch.setattr(common, "has_matplotlib", lambda: False)
    runs = [Run(seed) for seed in range(4)]
    experiment = common.Experiment("toy", "", lambda *_: runs, measure, lambda _: None, reads_text=False)
    common.conduct(experiment, argparse.Namespace(output=folder, small=False, device=device, processes=1, seed=1))
    return trained


def test_interrupted_runs_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        conduct(monkeypatch, tmp_path / "out", fails_at=2)
    assert conduct(monkeypatch, tmp_path / "out", fails_at=-1) == [2, 3]
    report = common.read_report(tmp_path / "out/toy.json")
    assert [run["accuracy"] for run in report["runs"]] == [90, 91, 92, 93]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["toy.json"]
    assert conduct(monkeypatch, tmp_path / "out", fails_at=-1) == [0, 1, 2, 3]


def test_results_of_another_device_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    KeptResults(path, "cpu").add(Run(1), {"accuracy": 90.0})
    assert KeptResults(path, "cpu").find(Run(1)) == {"accuracy": 90.0}
    assert KeptResults(path, "cpu").find(Run(2)) is None and KeptResults(path, "cuda").find(Run(1)) is None
