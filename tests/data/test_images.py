"""Images read as patches: what comes of views, formats and files that are none, and how much memory it takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.fairseq_cli import run_python
from torchscale_fairseq.data.drawn_order import drawn_evenly
from torchscale_fairseq.data.images import ordinary
from torchscale_fairseq.data.images.dataset import ImageDataset
from torchscale_fairseq.data.images.folders import read_classes, read_folders
from torchscale_fairseq.data.images.patches import ImagePatches
from torchscale_fairseq.data.images.stored import StoredImage
from torchscale_fairseq.data.images.views import Augmentation, View
from torchscale_fairseq.data.problems import DataError

SIDE, PATCH = 48, 8
"""Of the image that most tests read."""


def painted(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(painted(SIDE, SIDE, 3)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def assembled(patches: Tensor) -> np.ndarray:
    """(patches, 3, size, size) to (height, width, 3)."""
    side, size = int(len(patches) ** 0.5), patches.size(-1)
    return patches.view(side, side, 3, size, size).permute(0, 3, 1, 4, 2).reshape(side * size, side * size, 3).numpy()


def read(path: Path, size: int = SIDE, view: View | None = None) -> np.ndarray:
    return assembled(ImagePatches(path, size, PATCH, view or View()).read())


def test_an_image_of_that_size_is_read_as_it_is(image: Path) -> None:
    assert np.array_equal(read(image), painted(SIDE, SIDE, 3))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_turned_views(image: Path, transposed: bool, rows: bool, columns: bool) -> None:
    view = View(transposed=transposed, rows_reversed=rows, columns_reversed=columns)
    expected = painted(SIDE, SIDE, 3)
    expected = expected.transpose(1, 0, 2) if transposed else expected
    expected = expected[::-1] if rows else expected
    expected = expected[:, ::-1] if columns else expected
    assert np.array_equal(read(image, view=view), expected)


def test_slices_of_a_view(image: Path) -> None:
    """Three processes' patches together are the whole, though the file has their pixels in columns."""
    view = View(transposed=True, columns_reversed=True)
    whole = ImagePatches(image, SIDE, PATCH, view).read()
    parts = [ImagePatches(image, SIDE, PATCH, view, start, start + 13).read() for start in (0, 13)]
    assert torch.equal(torch.cat((*parts, ImagePatches(image, SIDE, PATCH, view, 26, 36).read())), whole)
    assert ImagePatches(image, SIDE, PATCH, view, 36, 36).read().shape == (0, 3, PATCH, PATCH)


def test_cropped_views(image: Path) -> None:
    view = View(left=8 / SIDE, top=16 / SIDE, side=0.5)
    assert np.array_equal(read(image, SIDE // 2, view), painted(SIDE, SIDE, 3)[16:40, 8:32])


def test_coloured_views(image: Path) -> None:
    pixels = painted(SIDE, SIDE, 3).astype(float)
    found = read(image, view=View(brightness=1.3, contrast=0.8, saturation=0.5))
    pixels = 1.3 * pixels
    pixels = 0.5 * pixels + 0.5 * (pixels @ (0.2126, 0.7152, 0.0722))[..., None]
    pixels = 0.8 * pixels + 0.2 * 127.5
    assert np.abs(found - pixels.clip(0, 255)).max() <= 0.51


def test_colours_are_exact_under_autocast(image: Path) -> None:
    """Streamed images are read in the forward pass, and again in the backward pass, which knows no autocast."""
    view = View(brightness=1.1, contrast=0.9, saturation=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        in_forward = read(image, view=view)
    assert np.array_equal(in_forward, read(image, view=view))


@pytest.mark.parametrize("name", ["large.jpg", "large.webp", "large.tif", "pyramid.tif"])
def test_large_files_are_scaled(name: str, tmp_path: Path) -> None:
    """Not square, from eight times the size: near to what Pillow makes of it."""
    import pyvips

    smooth = Image.fromarray(painted(6, 9, 3)).resize((SIDE * 8, SIDE * 6), Image.Resampling.BICUBIC)
    options = {"pyramid": True, "tile": True, "tile_width": 64, "tile_height": 64} if "pyramid" in name else {}
    pyvips.Image.new_from_array(np.asarray(smooth)).write_to_file(str(tmp_path / name), **options)
    expected = np.asarray(smooth.resize((SIDE, SIDE), Image.Resampling.BOX))
    assert np.abs(read(tmp_path / name).astype(int) - expected).mean() < 3


def test_what_is_no_image_is_named(image: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes(image.read_bytes()[:3000])
    for name in ("text", "half"):
        with pytest.raises(DataError, match=rf"{name}\.png is not an image that can be read: \S") as caught:
            read(tmp_path / f"{name}.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        read(tmp_path / "none.png")


def test_draws() -> None:
    """Without options nothing changes; with them, all eight sides and the whole range of crops and colours come up."""
    rng = np.random.default_rng(0)
    assert all(Augmentation().draw(rng) == View() for _ in range(20))
    views = [Augmentation(flip=True, rotate=True, min_crop=0.25, color_jitter=0.2).draw(rng) for _ in range(500)]
    assert len({(v.transposed, v.rows_reversed, v.columns_reversed) for v in views}) == 8
    sides = [view.side for view in views]
    assert 0.5 <= min(sides) < 0.52 and 0.98 < max(sides) <= 1
    assert all(0 <= v.left <= 1 - v.side and 0 <= v.top <= 1 - v.side for v in views)
    for name in ("brightness", "contrast", "saturation"):
        factors = [getattr(view, name) for view in views]
        assert 0.8 <= min(factors) < 0.82 and 1.18 < max(factors) <= 1.2
    turned = {
        (v.transposed, v.rows_reversed, v.columns_reversed)
        for v in (Augmentation(rotate=True).draw(rng) for _ in range(99))
    }
    assert turned == {(False, False, False), (True, False, True), (False, True, True), (True, True, False)}


def test_stretched_crops(image: Path) -> None:
    """The middle half of an image, twice as wide as high, becomes a square."""
    rng = np.random.default_rng(0)
    views = [Augmentation(min_crop=0.25, crop_aspect=4 / 3, horizontal_flip=True).draw(rng) for _ in range(500)]
    assert all(v.left + v.width <= 1 + 1e-12 and v.top + v.height <= 1 + 1e-12 for v in views)
    aspects = [v.aspect for v in views]
    assert 0.75 <= min(aspects) < 0.76 and 1.32 < max(aspects) <= 4 / 3
    assert {v.columns_reversed for v in views} == {True, False} and not any(v.rows_reversed for v in views)
    middle = Image.fromarray(painted(SIDE, SIDE, 3)[12:36]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    found = read(image, view=View(top=0.25, side=0.5**0.5, aspect=2.0))
    assert np.abs(found.astype(int) - np.asarray(middle)).max() <= 1


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is small enough to be decoded whole."""
    monkeypatch.setattr(ordinary, "MOST_PIXELS", 0)


@pytest.mark.parametrize("colours", [{}, {"brightness": 1.3, "contrast": 0.8, "saturation": 0.5}], ids=str)
@pytest.mark.parametrize("turn", [{}, {"transposed": True, "rows_reversed": True}, {"columns_reversed": True}], ids=str)
def test_both_ways_of_reading(
    turn: dict[str, Any], colours: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A smooth image, two thirds of whose width and three quarters of whose height are scaled down."""
    Image.fromarray(painted(6, 9, 3)).resize((288, 192), Image.Resampling.BICUBIC).save(tmp_path / "smooth.png")
    view = View(left=1 / 12, top=1 / 8, side=0.5**0.5, aspect=8 / 9, **turn, **colours)
    decoded_whole = read(tmp_path / "smooth.png", view=view).astype(int)
    request.getfixturevalue("large")
    a_row_at_a_time = read(tmp_path / "smooth.png", view=view)
    assert np.abs(decoded_whole - a_row_at_a_time).mean() < 1


@pytest.mark.usefixtures("large")
def test_a_large_image_of_one_patch_is_turned(image: Path) -> None:
    found = ImagePatches(image, SIDE, SIDE, View(rows_reversed=True, columns_reversed=True)).read()
    assert np.array_equal(assembled(found), painted(SIDE, SIDE, 3)[::-1, ::-1])


@pytest.mark.usefixtures("large")
def test_slices_of_a_large_image(image: Path) -> None:
    """As of one that is decoded whole."""
    test_slices_of_a_view(image)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of images that are decoded whole."""
    shapes, cut = [], View.cut

    def watched(view: View, pixels: Tensor) -> Tensor:
        shapes.append(tuple(pixels.shape))
        return cut(view, pixels)

    monkeypatch.setattr(View, "cut", watched)
    return shapes


@pytest.mark.parametrize(("side", "scale"), [(400, 1), (101, 1), (100, 2), (51, 2), (50, 4), (25, 8), (10, 8)])
def test_a_jpeg_file_is_decoded_at_reduced_scale(
    side: int, scale: int, tmp_path: Path, decoded: list[tuple[int, ...]]
) -> None:
    """The whole of 900 x 800 pixels, of which half the width and half the height are seen: with twice as many pixels a
    side as the result, or more."""
    Image.fromarray(painted(800, 900, 3)).save(tmp_path / "large.jpg")
    ordinary.read_ordinary(tmp_path / "large.jpg", side, View(side=0.5))
    assert decoded == [(3, 800 // scale, 900 // scale)]


def test_an_archived_image_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a reduced scale, for which it is opened twice."""
    Image.fromarray(painted(800, 900, 3)).save(tmp_path / "large.jpg")
    contents, read_content = [], StoredImage.read

    def watched(image: StoredImage) -> bytes:
        contents.append(read_content(image))
        return contents[-1]

    monkeypatch.setattr(StoredImage, "read", watched)
    stored = StoredImage(tmp_path / "large.jpg", "large.jpg", 0, (tmp_path / "large.jpg").stat().st_size)
    found = ordinary.read_ordinary(stored, 100, View(side=0.5))
    assert found is not None and torch.equal(found, ordinary.read_ordinary(tmp_path / "large.jpg", 100, View(side=0.5)))
    assert len(contents) == 1


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("side", "shape"), [(300, (320, 360)), (160, (320, 360)), (80, (160, 180)), (8, (16, 18))])
def test_a_webp_file_is_decoded_at_any_scale(
    side: int, shape: tuple[int, int], orientation: int, tmp_path: Path, decoded: list[tuple[int, ...]]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(painted(320, 360, 3)).save(tmp_path / "large.webp", exif=exif)
    ordinary.read_ordinary(tmp_path / "large.webp", side, View(side=0.5))
    assert decoded == [(3, *(shape if orientation == 1 else reversed(shape)))]


def test_a_drawing_is_drawn_at_the_right_scale(tmp_path: Path) -> None:
    """Enlarged from its nominal pixels, it would have blurred edges."""
    rectangle = "<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'><rect width='4' height='8'/></svg>"
    (tmp_path / "drawing.svg").write_text(rectangle)
    assert set(np.unique(read(tmp_path / "drawing.svg"))) == {0, 255}


def test_a_pyramid_is_not_decoded_whole(tmp_path: Path) -> None:
    import pyvips

    whole = pyvips.Image.new_from_array(painted(SIDE, SIDE, 3))
    for name, pyramid in (("plain.tif", False), ("pyramid.tif", True)):
        whole.write_to_file(str(tmp_path / name), tile=True, tile_width=16, tile_height=16, pyramid=pyramid)
        assert (ordinary.read_ordinary(tmp_path / name, SIDE, View()) is None) == pyramid


def test_which_images_are_large(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ordinary.read_ordinary(image, ordinary.LARGEST_SIDE, View()) is not None
    assert ordinary.read_ordinary(image, ordinary.LARGEST_SIDE + 1, View()) is None
    monkeypatch.setattr(ordinary, "MOST_PIXELS", SIDE**2)
    assert ordinary.read_ordinary(image, SIDE, View()) is not None
    monkeypatch.setattr(ordinary, "MOST_PIXELS", SIDE**2 - 1)
    assert ordinary.read_ordinary(image, SIDE, View()) is None


def dataset(images: list[Path], **options: object) -> ImageDataset:
    given: dict[str, Any] = {
        "img_size": SIDE,
        "patch_size": PATCH,
        "groups": None,
        "stream": False,
        "seed": 3,
        **options,
    }
    return ImageDataset(images, torch.arange(len(images)), **given)


def test_an_epoch_is_drawn_from_its_number(image: Path) -> None:
    """So a run that is resumed sees what it would have seen."""
    everything = Augmentation(flip=True, rotate=True, min_crop=0.5, color_jitter=0.1)
    first, other = (dataset([image] * 6, augmentation=everything) for _ in range(2))
    other.set_epoch(2)
    other[0]
    assert not all(torch.equal(first[i]["patches"], other[i]["patches"]) for i in range(6))
    assert first.order.tolist() != other.order.tolist()
    first.set_epoch(2)
    for i in (4, 1, 5):
        assert torch.equal(first[i]["patches"], other[i]["patches"]) and first[i]["id"] == other[i]["id"]
    fixed = dataset([image] * 6, augmentation=None)
    fixed.set_epoch(2)
    assert [fixed[i]["id"] for i in range(6)] == list(range(6))


def test_streamed_batches_hold_no_pixels(image: Path) -> None:
    decoded, streamed = (dataset([image] * 2, augmentation=None, stream=stream) for stream in (False, True))
    batch = streamed.collater([streamed[0], streamed[1]])
    found = torch.stack([patches.read() for patches in batch["net_input"]["patches"]])
    assert torch.equal(found, decoded.collater([decoded[0], decoded[1]])["net_input"]["patches"])


def test_classes_come_up_equally_often() -> None:
    groups = np.array([0] * 20 + [1] * 3 + [2] * 2)
    drawn = drawn_evenly(groups, np.random.default_rng(0))
    assert len(drawn) == 25
    assert sorted(np.bincount(groups[drawn]).tolist()) == [8, 8, 9]
    assert len(set(drawn[groups[drawn] == 0])) in (8, 9)  # none twice
    assert np.bincount(drawn, minlength=25)[20:].min() >= 2


def test_folders(tmp_path: Path) -> None:
    for name in ("train/b", "train/a", "train/.hidden", "valid/b"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("train/a/2.png", "train/a/1.png", "train/a/.DS_Store", "train/b/3.png", "valid/b/4.png"):
        (tmp_path / name).touch()
    classes = read_classes(tmp_path / "train")
    assert classes == ["a", "b"]
    images, labels = read_folders(tmp_path / "train", classes)
    assert [path.name for path in images] == ["1.png", "2.png", "3.png"] and labels == [0, 0, 1]
    assert read_folders(tmp_path / "valid", classes)[1] == [1]
    (tmp_path / "valid" / "c").mkdir()
    with pytest.raises(DataError, match=r"valid has the class c, which the training lacks; its classes are a, b"):
        read_folders(tmp_path / "valid", classes)
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(DataError, match=r"train/c has no image; put some there, or remove the folder"):
        read_folders(tmp_path / "train", read_classes(tmp_path / "train"))
    with pytest.raises(
        DataError, match=r"test does not exist; it should have a folder .* or shards .*test\.jsonl should name"
    ):
        read_classes(tmp_path / "test")
    with pytest.raises(
        DataError, match=r"valid/b has 0 folder\(s\); it should have one .* or shards \(\*\.tar without compr"
    ):
        read_classes(tmp_path / "valid" / "b")


MEMORY = """
    import resource, sys
    from pathlib import Path
    import pyvips, torch
    from torchscale_fairseq.core.ops.patch_embedding import embed_patches
    from torchscale_fairseq.data.images.patches import ImagePatches

    path, size, patch = Path({path!r}), 16384, 32
    rows = pyvips.Image.xyz(size, size)[1] // 64
    (rows * 3).bandjoin([rows * 5, rows * 7]).cast("uchar", shift=True).copy(interpretation="srgb").write_to_file(
        str(path), compression=1)
    weight = torch.randn(4, 3, patch, patch, requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    embedded = embed_patches([ImagePatches(path, size, patch)], (size // patch) ** 2, weight, bias)
    embedded.square().mean().backward()
    assert weight.grad.any()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """16,384 pixels a side, 805 MB decoded and 3.2 GB in float32, embedded forwards and backwards."""
    done = run_python(MEMORY.format(path=str(tmp_path / "large.png"))).check()
    before, after = map(int, done.stdout.split())
    assert after - before < 300, f"from {before} to {after} MiB"
