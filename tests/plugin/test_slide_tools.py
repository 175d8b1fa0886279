"""From scans to predictions: tile-slides, training, and classify-images with embeddings and attributions."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")
pytest.importorskip("pyvips")
pytest.importorskip("h5py")
pytest.importorskip("openslide")

import h5py
from PIL import Image

from tests.fairseq_cli import run_beside_fairseq, run_fairseq
from tests.plugin.drawn_scans import SIDE, TILE, Colours, draw_scans
from tests.plugin.slide_models import COMMON, LEARNING, TINY
from tests.printed import validated
from tests.tools.in_process import run_tool
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.slides.tile_encoder import TileEncoder
from torchscale_fairseq.data.slides.tiling import Slide, otsu

TISSUE_TILES = (SIDE * 3 // 4 // TILE) ** 2


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scans(tmp_path_factory.mktemp("scans") / "scans", 8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "colours.pt"
    torch.jit.script(Colours()).save(str(path))
    return path


@pytest.fixture(scope="module")
def tiled(scans: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiled") / "data"
    words = ["--output", folder, "--tile-size", TILE, "--encoder", encoder, "--device", "cpu", "--batch-size", 50]
    slides = sorted(scans.glob("*.tiff"))
    run_tool("tile-slides", *slides, *words).check()
    shutil.copy(scans / "slides.csv", folder)
    return folder


def test_tiles_are_those_with_tissue(tiled: Path) -> None:
    with h5py.File(tiled / "s0.h5") as file:
        coords, features = file["coords"][...], file["features"][...]
        assert file.attrs["tile_size"] == TILE and file.attrs["mpp"] == pytest.approx(0.5)
    assert len(coords) == TISSUE_TILES and features.shape == (TISSUE_TILES, 6)
    assert coords.min() == SIDE // 8 and coords.max() == SIDE - SIDE // 8 - TILE
    lesion = coords[features[:, 0].argmin()]
    assert lesion[1] < SIDE // 2, "slides of even numbers have it in the upper half"


def test_resumes_and_names_broken_slides(scans: Path, tiled: Path, encoder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(scans, tmp_path / "scans")
    (data / "s1.tiff").write_bytes(b"no slide")
    output = tmp_path / "out"
    output.mkdir()
    (output / "s0.h5").write_bytes(b"from before")
    done = run_tool("tile-slides", data, "--output", output, "--tile-size", 64, "--mpp", 1)
    assert done.returncode == 1 and re.search(r"tile-slides: .*s1\.tiff is not a slide that can be read", done.stderr)
    assert "1 of 8 slides could not be read; the others are in" in done.last_line
    assert (output / "s0.h5").read_bytes() == b"from before" and len(list(output.iterdir())) == 7
    with h5py.File(output / "s2.h5") as file:
        assert file["coords"][...].max() < SIDE // 2 and "features" not in file


def test_tiles_at_another_resolution(scans: Path) -> None:
    """The same tissue at half the resolution, from the pyramid's second level."""
    fine, coarse = Slide(scans / "s0.tiff", 64, None), Slide(scans / "s0.tiff", 32, 1.0)
    assert coarse.level == 1 and coarse.downsample == pytest.approx(2)
    large, small = np.asarray(fine.tile(192, 128), dtype=float), np.asarray(coarse.tile(96, 64), dtype=float)
    means = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(means - small).max() <= 1


def test_otsu_separates_two_groups() -> None:
    values = np.array([10] * 50 + [12] * 50 + [100] * 30 + [110] * 5, dtype=np.uint8)
    assert 12 <= otsu(values) < 100


class WithoutPackage:
    """Stands for timm: models of a fixed size of images, or of any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **facts: Any):
        self.asked: dict[str, Any] = {}
        self.facts = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 4, 4), **facts}
        monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=self.create_model))

    def create_model(self, name: str, **options: object) -> torch.nn.Module:
        self.asked.update(name=name, **options)
        if name == "nonesuch":
            raise RuntimeError("Unknown model (nonesuch)")
        model: Any = Colours()
        model.pretrained_cfg = self.facts
        self.sizes: list[torch.Size] = []
        model.register_forward_pre_hook(lambda _, images: self.sizes.append(images[0].shape))
        return model


def test_a_model_of_timm_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of timm; the package itself is not needed here."""
    timm = WithoutPackage(monkeypatch)
    found = TileEncoder("vit_tiny", None, "cpu")([np.full((6, 6, 3), 255, dtype=np.uint8)])
    assert timm.asked == {"name": "vit_tiny", "num_classes": 0, "pretrained": True} and timm.sizes == [(1, 3, 6, 6)]
    torch.testing.assert_close(found[0, :3], torch.ones(3))


@pytest.mark.parametrize("center_crop", [False, True], ids=["scaled", "cropped"])
def test_tiles_fit_a_model_of_fixed_size(monkeypatch: pytest.MonkeyPatch, center_crop: bool) -> None:
    """Tiles of 8 pixels whose middle half is white."""
    timm = WithoutPackage(monkeypatch, fixed_input_size=True)
    tile = np.zeros((8, 8, 3), dtype=np.uint8)
    tile[2:6, 2:6] = 255
    found = TileEncoder("vit_tiny", None, "cpu", center_crop=center_crop)([tile])
    assert timm.sizes == [(1, 3, 4, 4)]
    assert found[0, 0].item() == pytest.approx(1.0 if center_crop else -0.5, abs=0.1)


def test_a_model_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch, encoder: Path) -> None:
    WithoutPackage(monkeypatch)
    with pytest.raises(InputError, match=r"--encoder nonesuch cannot be built .* \(Unknown model \(nonesuch\)\)"):
        TileEncoder("nonesuch", None, "cpu")
    with pytest.raises(InputError, match="--center-crop is for models of timm"):
        TileEncoder(str(encoder), None, "cpu", center_crop=True)


def test_timm_itself(tmp_path: Path) -> None:
    """A small model of random weights takes tiles of another size than its images'."""
    timm: Any = pytest.importorskip("timm", exc_type=Exception)  # type: ignore[arg-type] # not only ImportError
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "weights.pth")
    encoder = TileEncoder("vit_tiny_patch16_224", tmp_path / "weights.pth", "cpu")
    assert encoder([np.zeros((256, 256, 3), dtype=np.uint8)] * 2).shape == (2, 192)
    with pytest.raises(InputError, match="cannot be built with the weights of --weights"):
        TileEncoder("resnet10t", tmp_path / "weights.pth", "cpu")


def train(data: Path, folder: Path, *flags: str) -> str:
    return (
        run_fairseq("train", [data, *TINY, *COMMON, "--tile-size", TILE, "--save-dir", folder, *flags]).check().output
    )


def classify(checkpoint: Path, *words: object) -> list[list[str]]:
    typed = ["classify-images", "--checkpoint", checkpoint, "--device", "cpu", *words]
    code = f"from torchscale_fairseq.tools.command import main\nmain({[str(word) for word in typed]})"
    done = run_beside_fairseq(code, plugin=False).check()
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_from_scans_to_predictions(tiled: Path, tmp_path: Path) -> None:
    """Probabilities and embeddings of slides, and a picture of the grid per slide."""
    train(tiled, tmp_path, "--max-update", "2")
    more = ["--embeddings", tmp_path / "e.npz", "--attribution", tmp_path / "pictures"]
    header, *lines = classify(tmp_path / "checkpoint_last.pt", *more, tiled)
    assert header == ["file", "class", "lower", "upper"] and len(lines) == 8
    assert all(float(line[2]) + float(line[3]) == pytest.approx(1, abs=2e-4) for line in lines)
    with np.load(tmp_path / "e.npz") as saved:
        assert saved["embeddings"].shape == (8, 16) and set(saved["slides"]) == {f"s{n}" for n in range(8)}
    with Image.open(tmp_path / "pictures" / "s3.png") as picture:
        assert picture.size == (8 * SIDE * 3 // 4 // TILE,) * 2
        red, green, blue = np.asarray(picture).reshape(-1, 3).T.astype(int)
    assert ((red == 255) | (blue == 255)).all() and green.min() == 0
    classify(tmp_path / "checkpoint_last.pt", *more, "--attribution-method", "rollout", tiled / "s3.h5")
    with Image.open(tmp_path / "pictures" / "s3.png") as picture:
        red, green, blue = np.asarray(picture).reshape(-1, 3).T.astype(int)
    assert (red == 255).all() and green.min() == 0 and (green == blue).all()


@pytest.mark.slow
def test_learns_where_the_lesion_is(scans: Path, encoder: Path, tmp_path: Path) -> None:
    """From TIFF files to held-out predictions."""
    data = draw_scans(tmp_path / "scans", 400)
    words = ["--output", tmp_path / "data", "--tile-size", TILE, "--encoder", encoder, "--device", "cpu"]
    run_tool("tile-slides", *sorted(data.glob("*.tiff")), *words).check()
    shutil.copy(data / "slides.csv", tmp_path / "data")
    output = train(tmp_path / "data", tmp_path / "run", *LEARNING, "--max-update", "200")
    assert validated(output, "accuracy")[-1] > 90
