"""The commands of docs/export.md run as they are written, on checkpoints made here."""

import importlib.util
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.documented_commands import commands
from tests.fairseq_cli import REPOSITORY
from tests.tools.families import Family, write_checkpoint
from tests.tools.in_process import run_tool

NEEDS = {"hf": "transformers", "ctranslate2": "ctranslate2", "onnx": "onnxscript"}
TRAINED = {
    "text": Family("gpt_deepnorm_small", "language_modeling"),
    "en-de": Family("mt_deepnorm_small", "translation", {"share_all_embeddings": True}),
}
GUIDE = [command.text for command in commands(REPOSITORY / "docs/export.md")]
GUIDE = [text for text in GUIDE if text.split()[1] in ("export", "import")]


def _needs(text: str) -> pytest.MarkDecorator:
    package = NEEDS[text.split()[2]]
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and data under the names that the guide uses."""
    made = tmp_path_factory.mktemp("guide")
    for name, family in TRAINED.items():
        run, data = made / "runs" / name, made / "data" / name
        run.mkdir(parents=True)
        data.mkdir(parents=True)
        write_checkpoint(family, run / "checkpoint_best.pt")
        words = "".join(f"w{index} 1\n" for index in range(20))
        for language in ("", "en.", "de."):
            (data / f"dict.{language}txt").write_text(words)
    return made


def test_the_guide_has_commands() -> None:
    assert len(GUIDE) >= 3


@pytest.mark.parametrize("text", [pytest.param(text, marks=_needs(text)) for text in GUIDE])
def test_commands(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_tool(*shlex.split(text)[1:]).check()
