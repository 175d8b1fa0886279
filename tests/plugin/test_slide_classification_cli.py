"""--task slide_classification through fairseq's commands, on slides made here."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.dataclass import FairseqDataclass

from tests.checkpoints import assert_same_weights, weights
from tests.fairseq_cli import Finished, run_fairseq, run_processes
from tests.plugin.drawn_slides import make_slides, write_bag
from tests.plugin.slide_models import COMMON, LEARNING, TINY
from tests.printed import assert_logged_alike, assert_printed_alike, validated
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.criterions.image_classification import ImageClassificationOptions
from torchscale_fairseq.criterions.multi_label import MultiLabelCriterion
from torchscale_fairseq.criterions.slide_classification import SlideClassificationCriterion, agreement
from torchscale_fairseq.data.slides.files import find_file, read_bag
from torchscale_fairseq.tasks.slide_classification import SlideClassificationTask, SlideConfig

FIGURES = ("loss", "accuracy", "auc", "balanced_accuracy", "kappa")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slides(tmp_path_factory.mktemp("slides") / "data", train=11, valid=6)


def train(data: Path, folder: Path, *flags: str, updates: int = 3, processes: int = 1) -> Finished:
    words = [data, *TINY, *COMMON, "--max-update", str(updates), "--save-dir", folder, *flags]
    return run_fairseq("train", words) if processes == 1 else run_processes(processes, "train", words)


def validate(data: Path, checkpoint: Path, *flags: str) -> Finished:
    words = [data, "--task", "slide_classification", "--path", checkpoint, "--cpu", "--batch-size", "3"]
    return run_fairseq("validate", [*words, "--valid-subset", "valid", *flags])


@pytest.fixture(scope="module")
def straight(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Four updates, in which a second epoch begins."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, train(slides, folder, "--max-tiles", "20", "--class-balanced", updates=4).check()


def test_figures_are_logged(straight: tuple[Path, Finished]) -> None:
    output = straight[1].output
    assert "11 slides, 2 classes: lower, upper" in output
    assert all(len(validated(output, name)) for name in FIGURES)
    assert re.search(r"train_inner .*loss=[\d.]+, accuracy=\d", output)


@pytest.mark.slow
def test_resumes_with_the_tiles_it_would_have_seen(
    slides: Path, straight: tuple[Path, Finished], tmp_path: Path
) -> None:
    train(slides, tmp_path, "--max-tiles", "20", "--class-balanced", updates=2).check()
    done = train(slides, tmp_path, "--max-tiles", "20", "--class-balanced", updates=4).check()
    assert "@ 2 updates" in done.output
    assert_same_weights(straight[0], tmp_path, 1e-6)


def test_processes_that_share_slides_train_what_one_does(slides: Path, tmp_path: Path) -> None:
    """Slides of different lengths, of which the class token is embedded by one of the processes."""
    flags = ["--clip-norm", "0.5", "--batch-size", "3"]
    alone = train(slides, tmp_path / "one", *flags).check()
    shared = train(slides, tmp_path / "two", *flags, "--seq-parallel", processes=2).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-6)
    assert_printed_alike(validated(shared.output, *FIGURES), validated(alone.output, *FIGURES))
    assert_logged_alike(shared.output, alone.output, ["loss", "accuracy", "gnorm", "bsz", "wpb"], "train_inner")


def test_other_targets(slides: Path, tmp_path: Path) -> None:
    """Labels of which a slide may have several, and survival."""
    labels = ["--label-columns", "low,odd", "--criterion", "multi_label"]
    done = train(slides, tmp_path / "labels", *labels, updates=1).check()
    assert len(validated(done.output, "auc", "auc_low", "auc_odd", "accuracy")) == 4
    times = ["--label-columns", "time,event", "--criterion", "survival", "--global-pool"]
    done = train(slides, tmp_path / "times", *times, updates=1).check()
    assert "11 slides, 7 events; bins of time begin at 0" in done.output and validated(done.output, "c_index")
    alone = validate(slides, tmp_path / "times" / "checkpoint_last.pt").check()
    assert_printed_alike(validated(alone.output, "c_index"), validated(done.output, "c_index"))


@pytest.mark.slow
def test_begins_from_released_weights(slides: Path, straight: tuple[Path, Finished], tmp_path: Path) -> None:
    """In Prov-GigaPath's layout, with a fixed table of positions and a tensor that has no place."""
    old = weights(straight[0])
    bare = {name.removeprefix("model."): value for name, value in old.items() if name.startswith("model.")}
    extra = {"pos_embed": torch.zeros(1, 5, 16), "decoder.weight": torch.zeros(2)}
    torch.save({"model": {**bare, **extra}}, tmp_path / "w.pth")
    flags = ["--pretrained", str(tmp_path / "w.pth"), "--lr", "1e-9"]
    output = train(slides, tmp_path / "run", *flags, updates=1).check().output
    assert f"began from {tmp_path / 'w.pth'}" in output
    assert f"1 tensors of {tmp_path / 'w.pth'} have no place in this model: model.decoder.weight" in output
    new = weights(tmp_path / "run")
    torch.testing.assert_close(new["model.cls_token"], old["model.cls_token"])
    torch.save({name: value for name, value in bare.items() if name != "cls_token"}, tmp_path / "w.pth")
    refused = train(slides, tmp_path / "other", *flags)
    assert "has no model.cls_token; it is not a slide encoder of this architecture" in refused.last_line


def task(data: Path, **options: Any) -> Any:
    cfg = SlideConfig(**{"data": str(data), **options})
    cfg._name, cfg.seed, cfg.train_subset = "slide_classification", 1, options.get("train_subset", "train")
    return SlideClassificationTask.setup_task(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_columns": "stage"}, r"slides\.csv has no column stage, but slide, split, label, low, odd, time"),
        ({"label_columns": "low,low"}, r"--label-columns \('low,low'\) must name columns of slides\.csv, each once"),
        ({"max_tiles": -1}, r"--max-tiles \(-1\) must be at least 1, or 0 for all"),
        ({"train_subset": "test"}, r"slides\.csv has no slide of the split test; its splits are train, valid"),
        ({"label_columns": "split"}, r"one class in the column split of the split train, train; .* at least two"),
    ],
)
def test_mistakes_are_named(slides: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(slides, **options)


def test_criterions_name_the_one_that_fits(slides: Path) -> None:
    with pytest.raises(InputError, match=r"--label-columns time,event gives times .* add --criterion survival"):
        SlideClassificationCriterion(ImageClassificationOptions(), task(slides, label_columns="time,event"))
    with pytest.raises(InputError, match=r"--criterion multi_label needs .* several labels, .* \(not label\)"):
        MultiLabelCriterion(FairseqDataclass(), task(slides))


@pytest.mark.parametrize("ending", [".h5", ".zarr", ".pt"])
def test_formats_hold_the_same(slides: Path, ending: str, tmp_path: Path) -> None:
    """As .npz does; a slide's name in the table has no ending."""
    if ending in (".h5", ".zarr"):
        pytest.importorskip({".h5": "h5py", ".zarr": "zarr"}[ending])
    bag = read_bag(slides / "t0.npz")
    write_bag(tmp_path / f"t0{ending}", bag.features.numpy(), bag.coords.numpy())
    found = read_bag(find_file(tmp_path, "t0"))
    assert torch.equal(found.features, bag.features) and torch.equal(found.coords, bag.coords)


def test_bare_features_are_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3, 2), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt holds a bare Tensor; a slide's file needs features .* and coords"):
        read_bag(tmp_path / "a.pt")
    torch.save({"features": torch.zeros(3, 2), "coords": torch.zeros(4, 2)}, tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"b\.pt has features of shape \(3, 2\) and coords of shape \(4, 2\)"):
        read_bag(tmp_path / "b.pt")


def test_agreement_by_hand() -> None:
    """Recall 1/2 and 1; one slide is off by one class, where chance (2, 0, 2 against 1, 1, 2) would have 7 squared."""
    scores = torch.eye(3)[torch.tensor([0, 1, 2, 2])]
    found = agreement(scores, torch.tensor([0, 0, 2, 2]))
    assert found["balanced_accuracy"] == 75
    assert found["kappa"] == pytest.approx(1 - 1 / 7)


def test_an_unusable_slide_is_named(slides: Path, tmp_path: Path) -> None:
    data = shutil.copytree(slides, tmp_path / "data")
    (data / "t3.npz").write_bytes(b"no slide")
    done = train(data, tmp_path / "run")
    assert done.returncode and re.search(r"t3\.npz cannot be read", done.last_line)
    (data / "v2.npz").unlink()
    output = train(data, tmp_path / "run", "--skip-invalid", updates=1).check().output
    assert "train: skipped 1 invalid slides, the first: " in output
    assert "valid: skipped 1 invalid rows, the first: " in output


@pytest.mark.slow
def test_positions_decide(tmp_path: Path) -> None:
    """A lesion's half of the slide, which coordinates alone tell: all of 100 held-out slides with them; by chance where
    all tiles lie in one cell of the grid."""
    data = make_slides(tmp_path / "data", train=400, valid=100)
    found = train(data, tmp_path / "with", *LEARNING, updates=150).check()
    assert validated(found.output, "accuracy")[-1] > 95
    one_cell = ["--tile-size", "8192", "--max-slide-size", "262144"]
    blind = train(data, tmp_path / "without", *LEARNING, *one_cell, updates=150).check()
    assert validated(blind.output, "accuracy")[-1] < 65
