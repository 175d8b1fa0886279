"""Image files of all kinds: what they show, or a sentence on why they cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.image_files import GREY, KINDS, SIDE, SMOOTH, largest_error
from torchscale_fairseq.data.images import ordinary
from torchscale_fairseq.data.images.patches import ImagePatches
from torchscale_fairseq.data.images.reading import load_image
from torchscale_fairseq.data.problems import DataError


@pytest.fixture(params=["ordinary", "large"], autouse=True)
def size_of_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests read their images in both ways."""
    if request.param == "large":
        monkeypatch.setattr(ordinary, "MOST_PIXELS", 0)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(name: str, tmp_path: Path) -> None:
    """Both tasks' readers find the same pixels, and the right ones."""
    path = tmp_path / name
    expected = KINDS[name](path)
    patches = ImagePatches(path, SIDE, SIDE).read()[0]
    found = patches.permute(1, 2, 0).numpy().astype(float)
    assert np.abs(found - expected).max() <= largest_error(name)
    assert torch.equal(load_image(path, SIDE), patches / 127.5 - 1)


def test_a_wide_image_is_scaled_to_a_square_in_both_tasks(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(np.repeat(SMOOTH, 2, 1)).save(path)
    patches = ImagePatches(path, SIDE, SIDE).read()[0]
    assert torch.equal(load_image(path, SIDE), patches / 127.5 - 1)
    assert np.abs(patches.permute(1, 2, 0).numpy().astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize("name", ["rgb.png", "orientation-1.jpg", "palette.gif", "rgb.tif", "rgb.bmp", "animated.webp"])
def test_truncated_files_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    KINDS[name](path)
    whole = path.read_bytes()
    for share in (0.5, 0.98):
        path.write_bytes(whole[: int(share * len(whole))])
        for read in (lambda: load_image(path, SIDE), ImagePatches(path, SIDE, 8).read):
            with pytest.raises(DataError, match=rf"{name} is not an image that can be read: \S") as caught:
                read()
            assert "\n" not in str(caught.value)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("no image")
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match=r"is not an image that can be read: its format is not known\."):
            load_image(path, SIDE)
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png", SIDE)


def test_numbers_of_unknown_range_are_refused(tmp_path: Path) -> None:
    """Nobody knows whether 1.0 or 255.0 is white."""
    for name, dtype in (("float.tif", np.float32), ("int.tif", np.int32)):
        Image.fromarray(GREY.astype(dtype)).save(tmp_path / name)
        with pytest.raises(DataError, match=r"whose largest value is not known; convert it to 8 or 16 bits"):
            load_image(tmp_path / name, SIDE)


def test_other_channels_are_refused(tmp_path: Path) -> None:
    """Nobody knows what the fourth of five shows."""
    import pyvips

    pixels = pyvips.Image.new_from_array(np.zeros((SIDE, SIDE, 5), np.uint8))
    pixels.copy(interpretation="srgb").write_to_file(str(tmp_path / "five.tif"))
    with pytest.raises(DataError, match=r"five\.tif is not .* it has 4 channels besides transparency; convert it"):
        load_image(tmp_path / "five.tif", SIDE)


def test_a_file_of_libvips_itself(tmp_path: Path) -> None:
    """It does not say who has read it."""
    import pyvips

    pyvips.Image.new_from_array(SMOOTH).copy(interpretation="srgb").write_to_file(str(tmp_path / "own.v"))
    found = ImagePatches(tmp_path / "own.v", SIDE, SIDE).read()[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), SMOOTH)
