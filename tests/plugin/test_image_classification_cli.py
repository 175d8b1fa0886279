"""--task image_classification through fairseq's commands, on images drawn here."""

import math
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights, weights
from tests.fairseq_cli import TOOL, Finished, run_fairseq, run_processes, run_program
from tests.plugin.drawings import make_folders
from tests.plugin.image_models import IMAGES, classify
from tests.printed import assert_logged_alike, assert_printed_alike, printed, validated
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.criterions.image_classification import (
    ImageClassificationCriterion,
    ImageClassificationOptions,
    area_under_curve,
)
from torchscale_fairseq.hooks.sequence_parallel import SLICE

COMMON = ["--batch-size", "4", "--optimizer", "sgd", "--lr", "0.1", "--cpu", "--num-workers", "0", "--log-format"]
COMMON += ["simple", "--log-interval", "1", "--no-epoch-checkpoints", "--required-batch-size-multiple", "1"]
FIGURES = ("loss", "accuracy", "auc")
AUGMENTED = ["--flip", "--rotate", "--min-crop", "0.5", "--color-jitter", "0.1", "--class-balanced"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("folders") / "data", train=3, valid=2)


def train(data: Path, folder: Path, *flags: str, updates: int = 3, processes: int = 1) -> Finished:
    words = [data, *IMAGES, *COMMON, "--max-update", str(updates), "--save-dir", folder, *flags]
    return run_fairseq("train", words) if processes == 1 else run_processes(processes, "train", words)


@pytest.fixture(scope="module")
def straight(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Five updates, in which a second epoch begins."""
    folder = tmp_path_factory.mktemp("straight")
    logged = ["--best-checkpoint-metric", "auc", "--maximize-best-checkpoint-metric"]
    logged += ["--tensorboard-logdir", str(folder / "tensorboard")]
    return folder, train(folders, folder, *AUGMENTED, *logged, updates=5).check()


def test_figures_are_logged(straight: tuple[Path, Finished]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, done = straight
    assert "4 classes: blue, green, red, yellow" in done.output
    assert re.search(r"train_inner .*loss=[\d.]+, accuracy=\d", done.output)
    assert "tps_device" not in done.output, "images have no tokens"
    events = EventAccumulator(str(folder / "tensorboard" / "valid"))
    events.Reload()
    assert {"loss", "accuracy", "auc"} <= set(events.Tags()["scalars"])
    assert_printed_alike([events.Scalars("auc")[-1].value], validated(done.output, "auc"))
    assert re.search(r"best_auc [\d.]+", done.output) and (folder / "checkpoint_best.pt").exists()


def test_resumes_with_the_images_it_would_have_seen(
    folders: Path, straight: tuple[Path, Finished], tmp_path: Path
) -> None:
    """Interrupted within the second epoch, and with images that are read in the forward pass."""
    train(folders, tmp_path, *AUGMENTED, "--stream-above", "16", updates=4).check()
    done = train(folders, tmp_path, *AUGMENTED, "--stream-above", "16", updates=5).check()
    assert "@ 4 updates" in done.output
    assert_same_weights(straight[0], tmp_path, 1e-6)


@pytest.mark.slow
def test_mixed_images_are_those_it_would_have_seen_when_resumed(folders: Path, tmp_path: Path) -> None:
    mixing = ["--mixup", "0.8", "--cutmix", "1.0", "--label-smoothing", "0.1"]
    train(folders, tmp_path / "straight", *mixing, updates=3).check()
    train(folders, tmp_path / "resumed", *mixing, updates=2).check()
    assert "@ 2 updates" in train(folders, tmp_path / "resumed", *mixing, updates=3).check().output
    assert_same_weights(tmp_path / "straight", tmp_path / "resumed", 1e-6)


def test_what_cannot_be_mixed_is_refused() -> None:
    task = SimpleNamespace(num_classes=3)
    with pytest.raises(InputError, match=r"--mixup \(-1\) must be at least 0, which mixes nothing"):
        ImageClassificationCriterion(ImageClassificationOptions(mixup=-1), task)
    criterion = ImageClassificationCriterion(ImageClassificationOptions(cutmix=1.0), task)
    streamed: dict[str, Any] = {"net_input": {"patches": [object()]}, "target": torch.tensor([0])}
    with pytest.raises(InputError, match=r"--cutmix mixes images .* give a --stream-above of at least --img-size"):
        criterion(torch.nn.Identity(), streamed)
    streamed["net_input"][SLICE] = object()
    with pytest.raises(InputError, match=r"--cutmix mixes whole images, and --seq-parallel splits them"):
        criterion(torch.nn.Identity(), streamed)


def test_the_checkpoint_knows_its_classes(folders: Path, straight: tuple[Path, Finished], tmp_path: Path) -> None:
    """Validation on data without training split, and without some of the classes."""
    words = ["--task", "image_classification", "--path", straight[0] / "checkpoint_last.pt", "--cpu"]
    words += ["--batch-size", "3", "--valid-subset", "valid"]
    shutil.copytree(folders / "valid", tmp_path / "valid")
    output = run_fairseq("validate", [tmp_path, *words]).check().output
    assert_printed_alike(validated(output, *FIGURES), validated(straight[1].output, *FIGURES))
    shutil.rmtree(tmp_path / "valid" / "blue")
    fewer = run_fairseq("validate", [tmp_path, *words]).check().output
    assert printed(fewer, "bsz") == [6] and printed(output, "bsz") == [8]
    (tmp_path / "valid" / "purple").mkdir()
    refused = run_fairseq("validate", [tmp_path, *words])
    assert re.search(
        "valid has the class purple, which the training lacks; its classes are blue, green", refused.output
    )


@pytest.mark.family
def test_probabilities_of_files(folders: Path, straight: tuple[Path, Finished], tmp_path: Path) -> None:
    """They agree with what the validation measured."""
    checkpoint = straight[0] / "checkpoint_last.pt"
    header, *lines = classify(checkpoint, folders / "valid").check().stdout.splitlines()
    assert header.split("\t") == ["file", "class", "blue", "green", "red", "yellow"]
    assert len(lines) == 8
    right = 0
    for line in lines:
        file, found, *probabilities = line.split("\t")
        values = [float(p) for p in probabilities]
        assert sum(values) == pytest.approx(1, abs=3e-4)
        assert header.split("\t")[2 + values.index(max(values))] == found
        right += Path(file).parent.name == found
    assert_printed_alike([100 * right / 8], validated(straight[1].output, "accuracy"))
    command = [*TOOL, "classify-images", "--checkpoint", checkpoint, folders / "valid"]
    nobody_reads = run_program(["bash", "-c", 'set -o pipefail; "$@" | :', "bash", *command])
    assert nobody_reads.returncode == 128 + signal.SIGPIPE and "torchscale-fairseq" not in nobody_reads.stderr
    (tmp_path / "text.png").write_text("no image")
    done = classify(checkpoint, tmp_path / "text.png", folders / "valid" / "blue")
    assert done.returncode == 1 and done.stdout.splitlines() == [header, *lines[:2]]
    assert done.last_line.endswith("classify-images: 1 of 3 files could not be read; the others stand in the table")
    alone = classify(checkpoint, tmp_path / "text.png")
    assert alone.last_line.endswith("classify-images: 1 of 1 files could not be read")
    assert re.search(r"classify-images: .*text\.png is not an image that can be read", done.stderr)


def test_figures_of_two_processes_are_those_of_one(folders: Path, tmp_path: Path) -> None:
    """Eight images in batches of three: one process has a batch more than the other, and one that is not full."""
    flags = ["--batch-size", "3"]
    done = train(folders, tmp_path, *flags, processes=2).check()
    words = [folders, "--task", "image_classification", "--path", tmp_path / "checkpoint_last.pt", "--cpu"]
    alone = run_fairseq("validate", [*words, "--batch-size", "8", "--valid-subset", "valid"]).check()
    assert_printed_alike(validated(done.output, *FIGURES), validated(alone.output, *FIGURES))


def test_processes_log_what_one_does(folders: Path, tmp_path: Path) -> None:
    """Twelve images in three batches of at most five: the second process has none in every other update. A validation,
    whose figures are gathered, comes between updates, whose figures are summed."""
    flags = ["--batch-size", "5", "--validate-interval-updates", "1"]
    alone = train(folders, tmp_path / "one", *flags, "--update-freq", "2", updates=4).check()
    both = train(folders, tmp_path / "two", *flags, updates=4, processes=2).check()
    assert min(printed(both.output, "bsz", "train_inner")) <= 5
    assert_logged_alike(both.output, alone.output, ["loss", "accuracy", "bsz"], "train_inner")
    assert_logged_alike(both.output, alone.output, FIGURES, "valid on 'valid' subset")
    assert_logged_alike(both.output, alone.output, ["loss", "accuracy"], "| train | epoch")


@pytest.mark.parametrize("size", [pytest.param("32", marks=pytest.mark.slow), "40"])
def test_processes_that_share_images_train_what_one_does(size: str, folders: Path, tmp_path: Path) -> None:
    """16 patches are shared out evenly, 25 are not; in the second case they are read in the forward pass."""
    flags = [*AUGMENTED, "--img-size", size, "--stream-above", "32", "--clip-norm", "0.5"]
    alone = train(folders, tmp_path / "one", *flags).check()
    shared = train(folders, tmp_path / "two", *flags, "--seq-parallel", processes=2).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-6)
    assert_printed_alike(validated(shared.output, *FIGURES), validated(alone.output, *FIGURES))
    assert len(printed(alone.output, "loss", "train_inner")) == 3
    assert_logged_alike(shared.output, alone.output, ["loss", "accuracy", "gnorm", "bsz", "wpb"], "train_inner")


def test_fine_tunes_for_other_classes_and_sizes(folders: Path, straight: tuple[Path, Finished], tmp_path: Path) -> None:
    before = straight[0] / "checkpoint_last.pt"
    data = shutil.copytree(folders, tmp_path / "data")
    for split in ("train", "valid"):
        (data / split / "blue").rename(data / split / "azure")
    refused = train(data, tmp_path / "same", "--restore-file", str(before))
    assert re.search(
        r"the checkpoint's classes are blue, .*, and the classes of .*train azure, .*--finetune", refused.output
    )
    tuned = ["--finetune-from-model", str(before), "--img-size", "48", "--lr", "1e-9"]
    done = train(data, tmp_path / "tuned", *tuned, updates=1).check()
    assert done.output.count("left as initialised, since the checkpoint has none for these classes: head.") == 2
    old, new = weights(straight[0]), weights(tmp_path / "tuned")
    assert new["model.pos_embed"].shape == (1, 36, 16)
    torch.testing.assert_close(new["model.patch_embed.proj.weight"], old["model.patch_embed.proj.weight"])
    assert not torch.allclose(new["head.weight"], old["head.weight"])


def test_begins_from_released_weights(folders: Path, straight: tuple[Path, Finished], tmp_path: Path) -> None:
    """Saved bare, as by its authors, with a head for other classes; needed no more when the run is done."""
    old = weights(straight[0])
    torch.save({"model": {**old, "head.weight": torch.zeros(2, 16), "head.bias": torch.zeros(2)}}, tmp_path / "w.pth")
    flags = ["--pretrained", str(tmp_path / "w.pth"), "--lr", "1e-9"]
    output = train(folders, tmp_path / "run", *flags, updates=1).check().output
    assert f"began from {tmp_path / 'w.pth'}" in output
    torch.testing.assert_close(weights(tmp_path / "run")["model.pos_embed"], old["model.pos_embed"])
    (tmp_path / "w.pth").unlink()
    words = [folders, "--task", "image_classification", "--path", tmp_path / "run" / "checkpoint_last.pt", "--cpu"]
    run_fairseq("validate", [*words, "--batch-size", "8", "--valid-subset", "valid"]).check()
    torch.save({name: value for name, value in old.items() if "pos_embed" not in name}, tmp_path / "w.pth")
    refused = train(folders, tmp_path / "other", *flags)
    assert "has no model.pos_embed; it is not a LongViT of this architecture" in refused.last_line


def test_an_unreadable_image_is_named(folders: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    (data / "train" / "red" / "1.png").write_bytes(b"no image")
    done = train(data, tmp_path / "run")
    assert done.returncode and re.search(r"red/1\.png is not an image that can be read", done.last_line)
    assert "train_inner" not in done.output
    (data / "valid" / "blue" / "notes.txt").write_text("no image")
    done = train(data, tmp_path / "run", *AUGMENTED, "--skip-invalid").check()
    for split, name in (("train", "red/1.png"), ("valid", "blue/notes.txt")):
        assert re.search(rf"{split}: left out: .*{name} is not an image", done.output)
        assert f"{split}: skipped 1 unreadable images, the first: " in done.output


def test_a_class_without_image_is_named(folders: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    (data / "train" / "purple").mkdir()
    done = train(data, tmp_path / "run")
    assert done.returncode and re.search(r"train/purple has no image", done.last_line)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--img-size", "30"], r"--img-size \(30\) must be a multiple of --patch-size \(8\); use 24"),
        (["--min-crop", "1.5"], r"--min-crop \(1\.5\) must be above 0 and at most 1"),
        (["--color-jitter", "1"], r"--color-jitter \(1\.0\) must be at least 0, which changes nothing, and below 1"),
        (
            ["--criterion", "cross_entropy"],
            r"not fit --criterion cross_entropy .* give --criterion image_classification or",
        ),
        (["--label-smoothing", "1"], r"--label-smoothing \(1\.0\) must be at least 0 and below 1"),
    ],
)
def test_wrong_options_are_refused(folders: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    done = train(folders, tmp_path, *flags)
    assert done.returncode and re.search(message, done.last_line)


def test_area_under_curve() -> None:
    """By hand: of 2 x 2 pairs three are in order. Scores that are far apart are no ties."""

    targets = torch.tensor([0, 0, 1, 1])
    scores = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [0.0, 4.0]])
    assert area_under_curve(scores, targets) == 0.75
    assert area_under_curve(100 * scores + 1000, targets) == 0.75
    assert math.isnan(area_under_curve(scores, torch.ones(4, dtype=torch.long)))


def test_area_under_curve_of_three_classes() -> None:
    from sklearn.metrics import roc_auc_score

    scores = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(1))
    expected = roc_auc_score(targets, scores.double().softmax(-1), multi_class="ovr", average="macro")
    assert area_under_curve(scores, targets) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_a_detail_decides(tmp_path: Path) -> None:
    """A square of 8 pixels, whose colour decides the class of an image of 2,048 pixels, in more than 95 % of held-out
    images. The mean colour of an image, which the ground decides, does not tell."""
    words = [sys.executable, "-m", "scripts.experiments.image_details", "--work-dir", tmp_path]
    assert validated(run_program(words, timeout=3600).check().output, "accuracy")[0] > 95
