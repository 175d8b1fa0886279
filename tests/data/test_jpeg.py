"""JPEG files that Pillow decodes, next to libvips."""

import io
import struct
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
from PIL import Image, ImageFile

from torchscale_fairseq.data.images import ordinary
from torchscale_fairseq.data.images.jpeg import decode_jpeg
from torchscale_fairseq.data.images.stored import StoredImage
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


def by_libvips(source: bytes) -> Tensor:
    return torch.from_numpy(pyvips.Image.new_from_buffer(source, "").numpy().copy())


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (101, 203), (375, 500), (17, 9), (1, 90)], ids=str)
def test_equals_libvips(shape: tuple[int, int], options: dict[str, Any]) -> None:
    source = content(drawn(*shape), **options)
    found = decode_jpeg(source, 1000, 1000, most=shape[0] * shape[1])
    assert found is not None and torch.equal(found, by_libvips(source))


def turned(orientation: int, before: bytes = b"") -> bytes:
    """A file that says in its EXIF how the camera was held, after the entries ``before``."""
    entries = before + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    directory = struct.pack(">H", len(entries) // 12) + entries + bytes(4)
    return content(drawn(20, 30), exif=b"Exif\0\0MM\0*\0\0\0\x08" + directory)


BEYOND_THE_END = struct.pack(">HHII", 0x010F, 2, 40, 900)
"""An entry of EXIF, the camera's make, whose text is not there."""
LEAST_BYTE_FIRST = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
PLAIN = content(drawn(20, 30))
OTHERS = {
    "upside down": turned(3),
    "turned": turned(6),
    "turned, in damaged EXIF": turned(8, BEYOND_THE_END),
    "turned, least byte first": content(
        drawn(20, 30), exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0" + bytes(4)
    ),
    "grey": content(drawn(20, 30).convert("L")),
    "inks": content(drawn(20, 30).convert("CMYK")),
    "png": content(drawn(20, 30), format="PNG"),
    "restarts": content(drawn(20, 30), restart_marker_blocks=1),
    "cut off": content(drawn(20, 30), quality=100)[:-100],
    "head alone": PLAIN[:10],
    "empty": b"",
    "too many pixels": content(drawn(21, 30)),
    "large enough to be reduced": content(drawn(15, 40)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_left_to_libvips(kind: str) -> None:
    assert decode_jpeg(PLAIN, 40, 15, most=600) is not None
    assert decode_jpeg(OTHERS[kind], 40, 15, most=600) is None


@pytest.mark.parametrize("before", [b"", BEYOND_THE_END], ids=["whole", "damaged"])
def test_upright_by_its_exif(before: bytes) -> None:
    assert decode_jpeg(turned(1, before), 40, 15, most=600) is not None


def test_a_file_that_ends_early_is_left_to_libvips_whatever_pillow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert decode_jpeg(OTHERS["cut off"], 40, 15, most=600) is None


def test_a_missing_file_is_left_to_libvips(tmp_path: Path) -> None:
    assert decode_jpeg(tmp_path / "nowhere.jpg", 40, 15, most=600) is None


VIEWS = [(100, View()), (100, View(left=0.1, top=0.2, side=0.5)), (50, View(side=0.7, aspect=2.0))]
"""Sizes of the result, and what is seen; the last are wide enough to be reduced, but not high enough."""


@pytest.mark.parametrize("stored", [False, True], ids=["file", "in an archive"])
def test_photographs_are_read_by_pillow_or_without_it_by_libvips(
    stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photograph.jpg"
    path.write_bytes(content(drawn(375, 500)))
    image = StoredImage(path, "photograph.jpg", 0, path.stat().st_size) if stored else path
    with monkeypatch.context() as patch:
        patch.setattr(ordinary, "_decode", lambda *_: pytest.fail("libvips decodes"))
        by_pillow = [ordinary.read_ordinary(image, size, view) for size, view in VIEWS]
    monkeypatch.setitem(sys.modules, "PIL.JpegImagePlugin", None)
    for (size, view), expected in zip(VIEWS, by_pillow, strict=True):
        found = ordinary.read_ordinary(image, size, view)
        assert found is not None and expected is not None and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("shape", "size", "view"),
    [((375, 500), 90, View()), ((375, 500), 45, View(side=0.7, aspect=2.0)), ((1500, 1500), 500, View())],
    ids=["reduced", "a part reduced", "many pixels"],
)
def test_large_photographs_are_left_to_libvips(
    shape: tuple[int, int], size: int, view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photograph.jpg"
    path.write_bytes(content(drawn(*shape)))
    decoded = []
    monkeypatch.setattr(ordinary, "_decode", lambda *arguments: decoded.append(arguments))
    assert ordinary.read_ordinary(path, size, view) is None and len(decoded) == 1
