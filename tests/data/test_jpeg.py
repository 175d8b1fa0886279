"""JPEG files that Pillow decodes, next to libvips."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("fairseq")
pytest.importorskip("pyvips")

import pyvips
from PIL import Image

from torchscale_fairseq.data.images import ordinary
from torchscale_fairseq.data.images.jpeg import ORIENTATION, decode_jpeg, shrink_of
from torchscale_fairseq.data.images.views import View


def drawn(height: int, width: int) -> Image.Image:
    """Waves of colour."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / 7 + y / 11), 127 + 100 * np.cos(x / 5 - y / 9), (3 * x + 5 * y) % 255]
    return Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8))


def content(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **{"format": "JPEG", **options})
    return file.getvalue()


def by_libvips(source: bytes, shrink: int) -> Tensor:
    image = pyvips.Image.new_from_buffer(source, "", shrink=shrink)
    return torch.from_numpy(image.numpy().copy())


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}], ids=str)
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(64, 64), (101, 203), (375, 500), (17, 9), (8, 90)], ids=str)
def test_equals_libvips(shape: tuple[int, int], shrink: int, options: dict[str, Any]) -> None:
    """At full and at reduced scale."""
    source = content(drawn(*shape), **options)
    wanted = shape[1] / (2 * shrink), shape[0] / (2 * shrink)
    assert shrink_of(2 * shrink) == shrink
    found = decode_jpeg(source, *wanted, most=10**6)
    assert found is not None and torch.equal(found, by_libvips(source, shrink))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


OTHERS = {
    "turned": content(drawn(20, 30), exif=turned()),
    "grey": content(drawn(20, 30).convert("L")),
    "inks": content(drawn(20, 30).convert("CMYK")),
    "png": content(drawn(20, 30), format="PNG"),
    "cut off": content(drawn(200, 300))[:3000],
    "head alone": content(drawn(20, 30))[:10],
    "large": content(drawn(40, 30)),
    "empty": b"",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_left_to_libvips(kind: str) -> None:
    assert decode_jpeg(OTHERS[kind], 30, 20, most=600) is None


def test_a_missing_file_is_left_to_libvips(tmp_path: Path) -> None:
    assert decode_jpeg(tmp_path / "nowhere.jpg", 30, 20, most=600) is None


def test_photographs_are_read_by_pillow_or_without_it_by_libvips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photograph.jpg"
    path.write_bytes(content(drawn(375, 500)))
    views = [View(), View(left=0.1, top=0.2, side=0.5)]
    with monkeypatch.context() as patch:
        patch.setattr(ordinary, "_decode", lambda *_: pytest.fail("libvips decodes"))
        by_pillow = [ordinary.read_ordinary(path, 64, view) for view in views]
    monkeypatch.setitem(sys.modules, "PIL.JpegImagePlugin", None)
    for view, expected in zip(views, by_pillow, strict=True):
        found = ordinary.read_ordinary(path, 64, view)
        assert found is not None and expected is not None and torch.equal(found, expected)
