"""RandAugment and random erasing: draws that depend on the seed alone, in the place of an image's patches."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("pyvips")
pytest.importorskip("fairseq")

from tests.plugin.drawings import make_folders
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.patch_embedding import whole_images
from torchscale_fairseq.data.images import transforms
from torchscale_fairseq.data.images.patches import as_patches
from torchscale_fairseq.data.images.transforms import GREY, ImageTransform
from torchscale_fairseq.tasks._images import ImageConfig
from torchscale_fairseq.tasks.image_classification import ImageClassificationTask

CPU = torch.device("cpu")


class StandIn:
    """Transforms like torchvision's: made from options, and drawing from torch's generator of the CPU."""

    @staticmethod
    def RandAugment(operations: int, magnitude: int) -> Any:
        return lambda image: image.roll(int(torch.randint(1, 1 + operations * magnitude, ())), 2)

    @staticmethod
    def RandomErasing(probability: float, value: int) -> Any:
        return lambda image: torch.where(torch.rand(image.shape[1:]) < probability, value, image)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "load_transforms", lambda: StandIn)
    monkeypatch.setattr("torchscale_fairseq.tasks._images.load_transforms", lambda: StandIn)


def patches() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (16, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_patches_of_an_image() -> None:
    assert torch.equal(as_patches(whole_images(patches()[None], CPU)[0], 8), patches())


def test_draws_depend_on_the_seed_alone(stand_in: None) -> None:
    transform = ImageTransform(operations=2, magnitude=9, erasing=0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = transform(patches(), 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(transform(patches(), 7), found)
    assert not torch.equal(transform(patches(), 8), found)
    assert found.shape == patches().shape and found.dtype == torch.uint8
    assert not torch.equal(found, patches()) and (found == GREY).all(1).any()


def test_images_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    transform = ImageTransform(operations=2, magnitude=9, erasing=1.0)
    found = transform(patches(), 7)
    assert torch.equal(transform(patches(), 7), found) and not torch.equal(transform(patches(), 8), found)
    assert found.shape == patches().shape and found.dtype == torch.uint8
    assert (found == GREY).all(1).any()


def task(folders: Path, **options: Any) -> ImageClassificationTask:
    given = {"img_size": 32, "patch_size": 8, "seed": 3, "train_subset": "train", **options}
    cfg = ImageConfig(data=str(folders), **given)
    built = ImageClassificationTask.setup_task(cfg)
    built.load_dataset("train")
    return built


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("transformed"), train=2, valid=1)


def test_a_resumed_epoch_is_transformed_as_it_would_have_been(folders: Path, stand_in: None) -> None:
    """Images are read in any order, by any worker; validation is as it is."""
    first, second, plain = (
        task(folders, **options).datasets["train"]
        for options in ({"rand_augment": 2}, {"rand_augment": 2}, {"rand_augment": 0})
    )
    for dataset in (first, second, plain):
        dataset.set_epoch(2)
    torch.rand(5)
    for index in (2, 0, 1):
        assert torch.equal(first[index]["patches"], second[index]["patches"])
        assert not torch.equal(first[index]["patches"], plain[index]["patches"])
    first.set_epoch(3)
    assert not torch.equal(first[0]["patches"], second[0]["patches"])
    validated = task(folders, rand_augment=2)
    validated.load_dataset("valid")
    assert validated.datasets["valid"].transform is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rand_augment": -1}, r"--rand-augment \(-1\) must be at least 0"),
        ({"rand_augment_magnitude": 31}, r"--rand-augment-magnitude \(31\) must be from 0 to 30"),
        ({"random_erasing": 1.5}, r"--random-erasing \(1.5\) must be a probability"),
        ({"crop_aspect": 0.5}, r"--crop-aspect \(0.5\) must be at least 1"),
        ({"rand_augment": 2, "stream_above": 16}, r"is above --stream-above \(16\); drop --rand-augment, or give"),
    ],
)
def test_refusals(options: dict[str, Any], message: str, folders: Path) -> None:
    with pytest.raises(InputError, match=message):
        task(folders, **options)


def test_split_images_are_refused(folders: Path, stand_in: None) -> None:
    with pytest.raises(InputError, match="change whole images, and --seq-parallel splits them"):
        task(folders, random_erasing=0.5).share_sequences(0, 2)


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ("2.13.0+cpu", "torch==2.13.0 (with the --index-url that your cpu build of torch came from)"),
        ("2.11.0+cu130", "torch==2.11.0 (with the --index-url that your cu130 build of torch came from)"),
        ("2.6.0", "torch==2.6.0"),
    ],
)
def test_the_package_that_is_missing_is_named(
    version: str, command: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a command that keeps the torch that is there."""
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ModuleNotFoundError, match=rf"need torchvision: pip install torchvision {re.escape(command)}$"):
        task(folders, rand_augment=2)


def test_a_package_for_another_torch_is_named(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import fails as torchvision's does."""
    (tmp_path / "torchvision").mkdir()
    failure = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (tmp_path / "torchvision" / "__init__.py").write_text(failure)
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"installed was not \(operator torchvision::nms .*\): pip uninstall torchv"):
        task(folders, rand_augment=2)
