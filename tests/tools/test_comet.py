"""score-translation --comet, with a stand-in for the package, whose weights are large."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fairseq_cli import Finished
from tests.tools.in_process import run_tool

LINES = {"source": "a bb ccc", "translation": "A BB CCC", "reference": "A B CCC", "kinds": "long short long"}


class Comet(SimpleNamespace):
    """A model that gives 1 to a translation that equals its reference, and 0 to others."""

    def predict(self, data: list[dict[str, str]], batch_size: int, gpus: int) -> Any:
        assert all(entry["src"].upper() == entry["mt"] for entry in data)
        return SimpleNamespace(scores=[float(entry["mt"] == entry["ref"]) for entry in data])


def download_model(name: str) -> str:
    if name != "Unbabel/known":
        raise KeyError(f"Model '{name}' not supported by COMET.")
    return "downloaded.ckpt"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, words in LINES.items():
        (tmp_path / name).write_text("\n".join(words.split()) + "\n")
    (tmp_path / "model.ckpt").write_text("")
    loaded = {"downloaded.ckpt", str(tmp_path / "model.ckpt")}
    load = {path: Comet() for path in loaded}.__getitem__
    package = SimpleNamespace(download_model=download_model, load_from_checkpoint=load)
    monkeypatch.setitem(sys.modules, "comet", package)
    return tmp_path


def score(folder: Path, model: object, *more: object) -> Finished:
    given = [folder / "translation", "--reference", folder / "reference", "--comet", model]
    return run_tool("score-translation", *given, *more)


@pytest.mark.parametrize("name", ["Unbabel/known", "model.ckpt"])
def test_means_over_all_and_over_kinds(name: str, folder: Path) -> None:
    model = folder / name if name.endswith("ckpt") else name
    lines = score(folder, model, "--source", folder / "source", "--kinds", folder / "kinds").check().stdout.splitlines()
    assert lines[0].split()[-1] == "COMET"
    assert {line.split()[0]: line.split()[-1] for line in lines[1:]} == {
        "all": "0.6667",
        "long": "1.0000",
        "short": "0.0000",
    }


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("Unbabel/other", "--comet Unbabel/other cannot be downloaded (KeyError: "),
        ("none.ckpt", "--comet none.ckpt does not exist; give a checkpoint of COMET"),
    ],
)
def test_models_that_are_not_there(model: str, message: str, folder: Path) -> None:
    assert message in score(folder, model, "--source", folder / "source").last_line


def test_sources_are_needed(folder: Path) -> None:
    assert "reads the source sentences; name their file with --source" in score(folder, "model").last_line


def test_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comet", None)
    line = score(folder, "Unbabel/known", "--source", folder / "source").last_line
    assert "this needs unbabel-comet, which is not installed: pip install unbabel-comet" in line
