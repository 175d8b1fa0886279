"""Random crops: what they show, and that seed, epoch and index decide them."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")
pytest.importorskip("pyvips")

from tests.plugin.drawings import make_folders
from torchscale_fairseq.data.images.crops import CropKind, blurred
from torchscale_fairseq.data.images.folders import read_unlabelled
from torchscale_fairseq.data.images.multi_crop_dataset import MultiCropDataset
from torchscale_fairseq.data.images.views import Augmentation
from torchscale_fairseq.data.problems import DataError

IMAGE = torch.arange(3 * 16 * 16).view(3, 16, 16).remainder(256).to(torch.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_without_options_a_crop_is_the_image() -> None:
    assert torch.equal(CropKind(16, Augmentation()).draw(IMAGE, generator()), IMAGE)


def test_a_crop_shows_the_part_that_its_view_names() -> None:
    """A quarter of the area, at its own scale: the crop is a window of the image."""
    kind = CropKind(8, Augmentation(min_crop=0.25, max_crop=0.25))
    assert kind.image_size == 16
    crop = kind.draw(IMAGE, generator())
    windows = IMAGE.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert any(torch.equal(crop, window) for window in windows)


def test_gray_solarized_and_turned() -> None:
    gray = CropKind(16, Augmentation(), gray_prob=1.0).draw(IMAGE, generator())
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[1], gray[2])
    solarized = CropKind(16, Augmentation(), solarize_prob=1.0).draw(IMAGE, generator())
    assert torch.equal(solarized, torch.where(IMAGE >= 128, 255 - IMAGE, IMAGE))
    kind = CropKind(16, Augmentation(flip=True, rotate=True))
    turned = {tuple(kind.draw(IMAGE, generator(seed)).flatten().tolist()) for seed in range(100)}
    symmetries = [turn for x in (IMAGE, IMAGE.transpose(1, 2)) for turn in (x, x.flip(1), x.flip(2), x.flip(1, 2))]
    assert turned == {tuple(x.flatten().tolist()) for x in symmetries}


def test_blurred_crops_are_smoother() -> None:
    stripes = (torch.arange(16) % 2 * 255).to(torch.uint8).expand(3, 16, 16)
    smooth = CropKind(16, Augmentation(), blur_prob=1.0).draw(stripes, generator())
    assert smooth.float().diff().abs().max() < 128


def test_blur_by_the_definition() -> None:
    """The middle of a single bright pixel has the Gaussian's weights; flat colours stay."""
    point = torch.zeros(1, 15, 15)
    point[0, 7, 7] = 1.0
    weights = torch.exp(-0.5 * torch.arange(-3, 4) ** 2 / 1.0**2)
    weights /= weights.sum()
    torch.testing.assert_close(blurred(point, 1.0)[0, 4:11, 4:11], weights.outer(weights))
    torch.testing.assert_close(blurred(torch.full((3, 4, 4), 9.0), 2.0), torch.full((3, 4, 4), 9.0))


def test_seed_epoch_and_index_decide(tmp_path: Path) -> None:
    images = read_unlabelled(make_folders(tmp_path / "data", train=1) / "train")
    wide, narrow = Augmentation(min_crop=0.4, color_jitter=0.4), Augmentation(min_crop=0.1, max_crop=0.4)

    def dataset(seed: int) -> MultiCropDataset:
        kinds = {"global_crops": [CropKind(32, wide, 0.5, 0.5)] * 2, "local_crops": [CropKind(16, narrow)] * 3}
        return MultiCropDataset(images, **kinds, patch_size=8, shuffle=True, seed=seed)

    data, again, other = dataset(1), dataset(1), dataset(2)
    batch = data.collater([data[0], data[1]])
    assert batch["net_input"]["global_crops"].shape == (2, 2, 3, 32, 32)
    assert batch["net_input"]["local_crops"].shape == (3, 2, 3, 16, 16)
    assert batch["ntokens"] == 2 * data.num_tokens(0) == 2 * (2 * 16 + 3 * 4)
    first = data[0]["global_crops"]
    assert torch.equal(first, again[0]["global_crops"]) and not torch.equal(first[0], first[1])
    assert not torch.equal(first, other[0]["global_crops"])
    again.set_epoch(2)
    assert not torch.equal(first, again[0]["global_crops"])


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_unlabelled(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has no image"):
        read_unlabelled(tmp_path / "train")
