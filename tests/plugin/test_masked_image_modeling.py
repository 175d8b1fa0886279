"""Masked image modelling: values and gradients by a written-out definition, and fairseq's commands on drawn images."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.models import build_model

from tests.checkpoints import assert_same_weights, weights
from tests.core.vit_definition import linear, norm, timm_weights, vit_features
from tests.fairseq_cli import Finished, run_fairseq, run_processes
from tests.helpers import assert_close
from tests.plugin.drawings import make_folders
from tests.plugin.registered import parse
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.criterions.masked_image_modeling import MaskedImageCriterion
from torchscale_fairseq.data.images.block_masks import BlockMasks
from torchscale_fairseq.data.images.masked_dataset import MaskedImages
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.models._vit_weights import own_names
from torchscale_fairseq.tasks.masked_image_modeling import MaskedImageConfig, MaskedImageTask

IDS = 7
SIZES = ["--img-size", "32", "--patch-size", "8"]
COMMON = [*SIZES, *shrunk("beit_tiny"), "--batch-size", "2", "--optimizer", "sgd", "--cpu", "--num-workers", "0"]
COMMON += ["--log-format", "simple", "--log-interval", "1", "--no-epoch-checkpoints"]
MASKED = ["--task", "masked_image_modeling", "--criterion", "masked_image_modeling", "--min-block-patches", "3"]
MASKED += ["--patch-vocab-size", str(IDS), "--lr", "0.1"]
CLASSES = ["--task", "image_classification", "--criterion", "image_classification", "--lr", "1e-9"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in a folder per colour, and an index with their colours and made ids of their patches."""
    folder = make_folders(tmp_path_factory.mktemp("masked") / "data", train=4, valid=1)
    for split in ("train", "valid"):
        files = sorted((folder / split).rglob("*.png"))
        lines = [
            {"image_path": str(file.relative_to(folder)), "patch_ids": ids_of(place), "label": file.parent.name}
            for place, file in enumerate(files)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def ids_of(place: int) -> list[int]:
    return [(5 * place + patch) % IDS for patch in range(16)]


def train(data: Path, folder: Path, *flags: str, updates: int = 5, processes: int = 1) -> Finished:
    words = [data, *COMMON, *flags, "--max-update", str(updates), "--save-dir", folder]
    return run_fairseq("train", words) if processes == 1 else run_processes(processes, "train", words)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Five updates of four images, in which a second epoch begins."""
    folder = tmp_path_factory.mktemp("straight")
    kept = ["--update-freq", "2", "--save-interval-updates", "3", "--keep-interval-updates", "1"]
    return folder, train(data, folder, *MASKED, *kept).check()


def test_resumes_with_the_masks_it_would_have_drawn(
    data: Path, straight: tuple[Path, Finished], tmp_path: Path
) -> None:
    assert re.search(r"train_inner .*loss=[\d.]+, accuracy=\d", straight[1].output)
    assert re.search(r"valid on 'valid' subset \| loss [\d.]+ \| accuracy \d", straight[1].output)
    before = straight[0] / "checkpoint_1_3.pt"
    train(data, tmp_path, *MASKED, "--update-freq", "2", "--restore-file", str(before)).check()
    assert_same_weights(straight[0], tmp_path, 1e-6)


def test_two_processes_train_as_one(data: Path, straight: tuple[Path, Finished], tmp_path: Path) -> None:
    train(data, tmp_path, *MASKED, processes=2).check()
    assert_same_weights(straight[0], tmp_path, 1e-6)


def test_fine_tunes_in_the_folder_of_the_run(data: Path, straight: tuple[Path, Finished]) -> None:
    """The encoder is taken and the head drawn anew, which is reported; the run itself is not resumed by mistake."""
    before = straight[0] / "checkpoint_last.pt"
    refused = train(data, straight[0], *CLASSES, updates=6)
    done = train(data, straight[0] / "classes", *CLASSES, "--pretrained", str(before), updates=1).check()
    assert "the checkpoint is of --task masked_image_modeling, and this run has --task image_c" in refused.last_line
    assert f"began from {before}" in done.output
    assert done.output.count("left as initialised, since the checkpoint has none for these classes: head.") == 2
    assert "have no place in this model: model.patch_embed.mask_token, patch_norm.weight" in done.output
    old, new = weights(straight[0]), weights(straight[0] / "classes")
    assert [name for name in new if name not in old] == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    for name in (name for name in new if name in old):
        torch.testing.assert_close(new[name], old[name])


def model_of(vocab_size: int) -> Any:
    cfg = parse("vit_tiny", *shrunk("vit_tiny")[2:], "--encoder-layers", "2")
    cfg.img_size, cfg.patch_size = 32, 8
    model: Any = build_model(cfg, SimpleNamespace(patch_vocab_size=vocab_size))
    return model.double().eval()


@pytest.mark.parametrize("vocab_size", [0, IDS])
def test_loss_and_gradients_are_those_of_the_definition(vocab_size: int, tmp_path: Path) -> None:
    model = model_of(vocab_size)
    given = {name: value.double() for name, value in timm_weights(2, 16, 32, 8, 16, 5).items() if "head" not in name}
    generator = torch.Generator().manual_seed(3)
    given["mask_token"] = torch.randn(1, 1, 16, generator=generator, dtype=torch.float64)
    for part in ("patch_norm", "patch_head"):
        for name, value in getattr(model, part).named_parameters():
            given[f"{part}.{name}"] = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    torch.save(given, tmp_path / "weights.pth")
    model.load_weights(tmp_path / "weights.pth")
    pixels = torch.randint(256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    masked = torch.rand(2, 16, generator=generator) < 0.4
    ids = torch.randint(max(vocab_size, 1), (2, 16), generator=generator)
    sample = {"net_input": {"patches": patches, "masked_patches": masked}, "nsentences": 2, "ntokens": 32}
    loss, size, _ = MaskedImageCriterion(None)(model, {**sample, "target": ids} if vocab_size else sample)

    for weight in given.values():
        weight.requires_grad_()
    images = pixels.double() / 127.5 - 1
    hidden = vit_features(given, images, 2, 2, masked)[:, 1:][masked]
    predicted = linear(given, "patch_head", norm(given, "patch_norm", hidden))
    if vocab_size:
        expected = -predicted.log_softmax(-1)[range(len(hidden)), ids[masked]].sum()
    else:
        values = patches[masked].flatten(1).double() / 127.5 - 1
        deviation = (values.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        targets = (values - values.mean(1, keepdim=True)) / deviation
        expected = (predicted - targets).square().mean(1).sum()
    assert size == int(masked.sum())
    assert_close(loss, expected, "float64")
    loss.backward()
    expected.backward()
    named = own_names({name: value.grad for name, value in given.items() if value.grad is not None})
    found = {name: p.grad for name, p in model.named_parameters()}
    assert set(named) == set(found)
    for name, gradient in named.items():
        assert_close(found[name], gradient, "float64")


def test_masks_depend_on_seed_epoch_and_index(data: Path) -> None:
    """Which process reads an image does not matter, nor what was read before."""
    files = sorted((data / "train").rglob("*.png"))

    def masks(seed: int, epoch: int) -> torch.Tensor:
        dataset = MaskedImages(
            files, None, BlockMasks(4, 0.4, 3), img_size=32, patch_size=8, augmentation=None, seed=seed
        )
        dataset.set_epoch(epoch)
        order = np.random.default_rng(seed).permutation(len(files))
        read = {index: dataset[index]["masked_patches"] for index in order}
        return torch.stack([read[index] for index in range(len(files))])

    assert torch.equal(masks(1, 2), masks(1, 2))
    assert not torch.equal(masks(1, 2), masks(1, 3)) and not torch.equal(masks(1, 2), masks(2, 2))
    assert len(masks(1, 2).unique(dim=0)) > len(files) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, r"--mask-ratio \(1\.0\) must lie between 0 and 1"),
        ({"min_block_patches": 7}, r"--min-block-patches \(7\) must be at least 1 .* the 16 patches .*; use 6"),
        ({"mask_ratio": 0.05}, r"--min-block-patches \(3\) .*; raise --mask-ratio, or give smaller patches"),
        ({"patch_vocab_size": -1}, r"--patch-vocab-size \(-1\) must be positive, or 0 to predict pixels"),
        ({"patch_vocab_size": 7, "min_crop": 0.5}, r"--min-crop 0\.5 does not fit --patch-vocab-size \(7\)"),
        ({"patch_vocab_size": 7, "crop_aspect": 1.5}, r"--crop-aspect 1\.5 does not fit --patch-vocab-size \(7\)"),
        ({"patch_vocab_size": 7, "horizontal_flip": True}, r"--horizontal-flip does not fit --patch-vocab-size"),
        ({"patch_vocab_size": 7, "flip": True}, r"--flip does not fit --patch-vocab-size \(7\), since patch_ids"),
        ({"img_size": 30}, r"--img-size \(30\) must be a multiple of --patch-size \(8\)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task_of(Path("data"), **options)


def task_of(data: Path, **options: Any) -> MaskedImageTask:
    given = {"img_size": 32, "patch_size": 8, "min_block_patches": 3, "seed": 1, "train_subset": "train"}
    return MaskedImageTask(MaskedImageConfig(data=str(data), **{**given, **options}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_path": "train/red/0.png"}', "train.jsonl, line 1 has no patch_ids; it should be such as"),
        ('{"image_path": "train/red/0.png", "patch_ids": [0, true]}', "line 1 has no patch_ids"),
        ('{"image_path": "train/red/0.png", "patch_ids": [0, 1]}', "has 2 patch_ids, and an image has 16 patches"),
        (
            f'{{"image_path": "train/red/0.png", "patch_ids": {[7] * 16}}}',
            r"has patch_ids from 7 to 7; they must be from 0 to --patch-vocab-size \(7\) - 1",
        ),
        ("", "has no valid line"),
    ],
)
def test_wrong_ids_are_named(line: str, message: str, tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", train=1)
    (folder / "train.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match=message):
        task_of(folder, patch_vocab_size=IDS).load_dataset("train")


def test_images_without_labels_are_found_at_any_depth(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", train=1)
    (folder / "train" / "red" / "0.png").rename(folder / "train" / "first.png")
    (folder / "train" / ".hidden").write_text("no image")
    (folder / "valid").symlink_to(folder / "train")
    task = task_of(folder)
    for split in ("train", "valid"):
        task.load_dataset(split)
    names = [str(file.relative_to(folder)) for file in task.dataset("train").images]
    assert names == ["train/blue/0.png", "train/first.png", "train/green/0.png", "train/yellow/0.png"]
    assert len(task.dataset("valid")) == 4
    with pytest.raises(DataError, match=r"test does not exist; it should have images, or .*test\.jsonl should"):
        task.load_dataset("test")


def test_training_alone_draws_views_and_an_order(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", train=4)
    (folder / "valid").symlink_to(folder / "train")
    task = task_of(folder, rotate=True)
    seen = {}
    for split in ("train", "valid"):
        task.load_dataset(split)
        dataset = task.dataset(split)
        dataset.set_epoch(2)
        seen[split] = list(dataset.order), torch.stack([dataset[index]["patches"] for index in range(len(dataset))])
    (drawn, turned), (fixed, whole) = seen["train"], seen["valid"]
    assert fixed == sorted(drawn) != drawn
    assert not torch.equal(turned, whole[drawn])
