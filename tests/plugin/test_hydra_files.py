"""Every file in config/ trains by fairseq-hydra-train, and every small architecture has one."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from fairseq.models import MODEL_REGISTRY

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.data.corpora import made_corpus
from tests.fairseq_cli import USER_DIR, Finished, run_fairseq
from tests.plugin.drawings import make_drawings, make_folders
from tests.plugin.drawn_slides import make_slides
from tests.plugin.shrunk import shrunk
from tests.plugin.spoken import prepare, write_corpus
from tests.tools.in_process import run_tool
from torchscale_fairseq.checkpoints.reading import load_checkpoint

ARCH = re.compile(r"^model:\n  _name: (\w+)", re.MULTILINE)
TASK = re.compile(r"^task:\n  _name: (\w+)", re.MULTILINE)
FILES = {path.stem: path.read_text() for path in sorted((USER_DIR / "config").glob("*.yaml"))}


def train(name: str, data: Path, folder: Path, *overrides: str) -> Finished:
    """Two updates of the file's model, made tiny."""
    flags = [word.removeprefix("--").replace("-", "_") for word in shrunk(ARCH.search(FILES[name])[1])[2:]]
    arguments = ["--config-dir", USER_DIR / "config", "--config-name", name, f"task.data={data}", "common.cpu=true"]
    arguments += [f"+model.{key}={value}" for key, value in zip(flags[::2], flags[1::2], strict=True)]
    if name == "slide_encoder_small":
        arguments.append("model.feature_dim=6")
    arguments += ["optimization.max_update=2", f"hydra.run.dir={folder}", *overrides]
    return run_fairseq("hydra_train", arguments, cwd=folder)


@pytest.fixture(scope="module")
def data_of(language_data: Path, translation_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By task."""
    shards = made_corpus(tmp_path_factory.mktemp("shards") / "data")
    data = {"translation": translation_data, "language_modeling": language_data, "masked_lm": language_data}
    pictures = make_drawings(tmp_path_factory.mktemp("pictures") / "data", train=24, valid=4)
    folders = make_folders(tmp_path_factory.mktemp("folders") / "data", train=4, valid=1)
    slides = make_slides(tmp_path_factory.mktemp("slides") / "data", train=4, valid=2)
    speech = tmp_path_factory.mktemp("features") / "data"
    return {
        **data,
        "pretraining": shards,
        "image_text": pictures,
        "image_classification": folders,
        "masked_image_modeling": folders,
        "slide_classification": slides,
        "speech_to_text": prepare(write_corpus(tmp_path_factory.mktemp("speech") / "corpus"), speech),
    }


@pytest.mark.parametrize("name", FILES)
def test_file_trains(name: str, data_of: dict[str, Path], tmp_path: Path) -> None:
    """The options of logging are keys of every model."""
    data = data_of[TASK.search(FILES[name])[1]]
    train(name, data, tmp_path, "+model.log_norms_interval=1", "+model.peak_tflops=3.0").check()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "checkpoint_last.pt")
    assert checkpoint["cfg"]["model"]["_name"] == ARCH.search(FILES[name])[1]
    assert any((tmp_path / "tensorboard" / "norms").iterdir())


def test_finished_run_is_left_alone(data_of: dict[str, Path], tmp_path: Path) -> None:
    train("gpt_deepnorm_small", data_of["language_modeling"], tmp_path).check()
    checkpoint = tmp_path / "checkpoints" / "checkpoint_last.pt"
    before = checkpoint.read_bytes()
    again = train("gpt_deepnorm_small", data_of["language_modeling"], tmp_path).check()
    assert "nothing to train: --max-update (2) is reached" in again.output and checkpoint.read_bytes() == before


def test_survival_by_the_overrides_that_the_file_names(tmp_path: Path) -> None:
    run_tool("data", "draw-survival", tmp_path / "discs", "--train", "8", "--valid", "4").check()
    overrides = re.search(r"^#   (\+task.labels=.*)$", FILES["longvit_small"], re.MULTILINE)[1].split()
    done = train("longvit_small", tmp_path / "discs", tmp_path, *overrides).check()
    assert re.search(r"valid on 'valid' subset .*\bc_index ", done.output)
    assert load_checkpoint(tmp_path / "checkpoints" / "checkpoint_best.pt")["cfg"]["criterion"]["_name"] == "survival"


def test_every_small_architecture_has_a_file() -> None:
    small = {name for name, model in MODEL_REGISTRY.items() if hasattr(model, "preset") and name.endswith("_small")}
    written = " ".join(FILES.values()).replace(";", " ").split()
    named = {word.removeprefix("model._name=") for word in written}
    assert small <= named
    assert all(f"--config-name {name} " in text for name, text in FILES.items())
