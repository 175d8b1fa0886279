"""--task image_text through fairseq's commands, on images drawn here."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.fairseq_cli import Finished, run_fairseq
from tests.plugin.drawings import make_drawings
from tests.plugin.image_models import IMAGES_AND_TEXT
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.core.config import BEiT3Config
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.criterions.image_text import normalised_patches
from torchscale_fairseq.data.images.captions import read_captions
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.models.beit3 import ImageTextModel
from torchscale_fairseq.tasks._images import check_size

TINY = ["--encoder-layers", "1", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"]
TINY += ["--encoder-attention-heads", "2"]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drawings(tmp_path_factory.mktemp("drawings") / "data", train=24, valid=10)


def train(data: Path, folder: Path, *flags: str, updates: int = 3, arch: str = "beit3_base") -> Finished:
    words = [
        data,
        *IMAGES_AND_TEXT,
        "--arch",
        arch,
        "--batch-size",
        "8",
        "--optimizer",
        "adam",
        "--lr",
        "1e-3",
        "--cpu",
    ]
    words += ["--max-update", str(updates), "--num-workers", "0", "--log-format", "simple", "--log-interval", "1"]
    return run_fairseq("train", [*words, "--save-dir", folder, "--no-epoch-checkpoints", *flags], timeout=1200)


@pytest.mark.family
def test_trains_resumes_and_validates(drawings: Path, tmp_path: Path) -> None:
    first = train(drawings, tmp_path, *TINY).check().output
    for name in ("word_loss", "patch_loss", "match_loss", "match_accuracy"):
        assert re.search(rf"valid on 'valid' subset .*\| {name} [\d.]+", first), name
    assert "@ 3 updates" in train(drawings, tmp_path, *TINY, updates=6).check().output
    words = [drawings, "--task", "image_text", "--path", tmp_path / "checkpoint_last.pt", "--valid-subset", "valid"]
    output = run_fairseq("validate", [*words, "--batch-size", "8", "--cpu"]).check().output
    logged, validated = (re.findall(r"match_accuracy ([\d.]+)", text) for text in (first, output))
    assert logged and validated
    state = load_checkpoint(tmp_path / "checkpoint_last.pt")
    check_size(state, 32)
    message = (
        r"with --img-size 32, and this run has --img-size 48, .* add --reset-optimizer, or .* --finetune-from-model"
    )
    with pytest.raises(InputError, match=message):
        check_size(state, 48)
    check_size({**state, "last_optimizer_state": None}, 48)
    tuned = ["--img-size", "48", "--finetune-from-model", str(tmp_path / "checkpoint_last.pt")]
    train(drawings, tmp_path / "larger", *TINY, *tuned, updates=1).check()


def test_positions_are_interpolated_to_another_size() -> None:
    """Patches alone: not the class token, nor the two rows before it."""

    def model(img_size: int) -> Any:
        sizes: dict[str, Any] = {
            "encoder_embed_dim": 8,
            "encoder_attention_heads": 2,
            "encoder_ffn_embed_dim": 8,
            "encoder_layers": 1,
        }
        return ImageTextModel(BEiT3Config(img_size=img_size, patch_size=8, vocab_size=9, **sizes), pad=1)

    small, large = model(16), model(32)
    table = small.core.encoder.embed_positions.A.weight.detach()
    grid = torch.arange(2.0)[:, None, None] + 2 * torch.arange(2.0)[None, :, None].expand(2, 2, 8)
    table[3:] = grid.flatten(0, 1)
    large.load_state_dict(small.state_dict())
    found = large.core.encoder.embed_positions.A.weight
    assert torch.equal(found[:3], table[:3])
    patches = found[3:].unflatten(0, (4, 4))
    assert (patches.diff(dim=0) > 0).all() and (patches.diff(dim=1) > 0).all(), "as the positions of the small image"
    torch.testing.assert_close(patches.mean((0, 1)), torch.full((8,), 1.5))
    assert torch.equal(large.state_dict()["core.vision_embed.proj.weight"], small.core.vision_embed.proj.weight)


def test_target_of_patches() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    patches = normalised_patches(images, 2)
    assert patches.shape == (2, 4, 12)
    first = images[0, :, :2, :2].flatten()
    expected = (first - first.mean()) / first.std(correction=0)
    torch.testing.assert_close(patches[0, 0], expected, atol=1e-5, rtol=1e-5)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_is_wrong_with_captions_is_said(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    good = json.dumps({"image": "1.png", "caption": "one"})
    for lines, message in (
        ([good, "{"], r"train\.jsonl, line 2 is not JSON"),
        ([good, json.dumps({"image": "1.png"})], r"train\.jsonl, line 2 has no caption"),
        ([good, json.dumps({"image": "2.png", "caption": "two"})], r"line 2 names .*2\.png, which does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            read_captions(write(tmp_path, *lines))
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        read_captions(tmp_path / "none.jsonl")


def test_an_unreadable_image_is_named(drawings: Path, tmp_path: Path) -> None:
    data = shutil.copytree(drawings, tmp_path / "data")
    (data / "images" / "train3.png").write_bytes(b"no image")
    done = train(data, tmp_path / "run", *TINY)
    message = r"train3\.png is not an image that can be read: .*; mend it, or leave such things out with --skip-invalid"
    assert done.returncode and re.search(message, done.last_line) and "train_inner" not in done.output
    lines = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(
        lines + '{"image": "images/train4.png"}\n' + lines.splitlines()[0].replace("a ", "a " * 90)
    )
    done = train(data, tmp_path / "run", *TINY, "--skip-invalid").check()
    for message in ("1 unreadable images", "1 invalid lines", "1 captions that are too long"):
        assert f"train: skipped {message}, the first: " in done.output
    assert (tmp_path / "run" / "checkpoint_last.pt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--img-size", "30"], r"--img-size \(30\) must be a multiple of --patch-size \(8\)"),
        (["--image-mask-prob", "1.5"], r"--image-mask-prob \(1.5\) must lie between 0 and 1"),
        (["--max-source-positions", "3"], r"more than --max-source-positions \(3\); shorten the caption"),
    ],
)
def test_wrong_options_are_refused(drawings: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    done = train(drawings, tmp_path, *TINY, *flags)
    assert done.returncode and re.search(message, done.last_line)


@pytest.mark.slow
def test_matches_held_out_pairs(tmp_path: Path) -> None:
    """Shapes and colours: above 95 % of unseen images get their caption and refuse another one. Colours are learned
    within 200 updates (90 %), shapes in the 1,000 that follow."""
    data = make_drawings(tmp_path / "data", train=4000, valid=400)
    flags = ["--encoder-layers", "2", "--encoder-embed-dim", "64", "--encoder-ffn-embed-dim", "256"]
    flags += ["--batch-size", "32", "--lr", "1e-3", "--lr-scheduler", "polynomial_decay", "--warmup-updates", "50"]
    flags += ["--total-num-update", "1800", "--clip-norm", "1.0", "--log-interval", "100", "--validate-interval", "50"]
    output = train(data, tmp_path / "run", *flags, updates=1800, arch="beit3_small").check().output
    assert float(re.findall(r"valid on 'valid' subset .*\| match_accuracy ([\d.]+)", output)[-1]) > 95
