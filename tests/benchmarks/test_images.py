"""benchmarks/images.py: its data, its commands and its table."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("pyvips")

from PIL import Image

from benchmarks import fixed_batch, image_data, images

LOG = '2026 | INFO | train_inner | {"wps": "5"}\n2026 | INFO | train_inner | {"wps": "%d"}\n'
TOY = ["--device", "cpu", "--size", "tiny", "--img-size", "32", "--batch", "2", "--workers", "1"]


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Four patches are an image; each speed is compared with timm's."""
    commands: list[list[str]] = []

    def run(words: list[str]) -> str:
        commands.append(words)
        return LOG % 400

    monkeypatch.setattr(images, "run", run)
    monkeypatch.setattr(images, "timed_speed", lambda module, *_: {"timm_loop": 50.0, "fixed_batch": 200.0}[module])
    monkeypatch.setattr(images, "measure_loader", lambda *_: 25.0)
    monkeypatch.setattr(images, "version", lambda _: "1.0")
    assert images.main([*TOY, "--families", "vit_magneto"]) == 0
    assert "vit_magneto_tiny" in commands[0] and "--cpu" in commands[0]
    printed = capsys.readouterr()
    of_training = [line for line in printed.err.splitlines() if "loader" not in line]
    assert "timm's vit_tiny_patch16_224: 50 images/s (1.000 of timm's)" in of_training[0]  # as soon as it is known
    assert of_training[-1].startswith(of_training[0])  # and again with what came later
    assert of_training[-1].endswith("fixed batch, vit_magneto_tiny: 200 images/s (4.000 of timm's)")
    lines = printed.out.splitlines()[-4:]
    assert [line.split(" | ")[1] for line in lines] == ["50", "100", "200", "25"]
    assert [line.split(" | ")[3].strip(" |") for line in lines] == ["1.000", "2.000", "4.000", "0.500"]


def test_parts_are_measured_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(images, "measure_training", lambda *_: iter([("fairseq-train", 100.0)]))
    monkeypatch.setattr(images, "measure_loader", lambda *_: 25.0)
    for part, line in (("training", "| fairseq-train | 100 |"), ("loader", "| loader, 1 workers | 25 |")):
        assert images.main([*TOY, "--parts", part]) == 0
        last = capsys.readouterr().out.splitlines()[-2:]
        assert set(last[0]) <= set("|-") and last[1].startswith(line)


@pytest.mark.slow
def test_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.logging, "disable", lambda _: None)
    monkeypatch.setattr(images, "FILES", 2)
    monkeypatch.setattr(images, "in_fresh_process", lambda function, *arguments: function(*arguments))
    assert images.measure_loader(tmp_path / "data", images.parse_options([*TOY, "--batch", "1"])) > 0


def test_files_are_as_large_as_photographs(tmp_path: Path) -> None:
    contents = [image_data.texture(1, *images.PHOTOGRAPH)]
    assert 80_000 < len(contents[0]) < 110_000
    image_data.write_images(tmp_path / "data", contents, 3, 2)
    lines = [json.loads(line) for line in (tmp_path / "data/train.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [0, 1, 0]
    with Image.open(tmp_path / "data" / lines[2]["image_path"]) as image:
        assert image.size == images.PHOTOGRAPH


def test_operations_of_vit_base() -> None:
    """17.6 billion multiplications and additions forward, as the literature counts them."""
    assert images.flops_per_image(768, 224) == pytest.approx(3 * 2 * 17.58e9, rel=0.01)


def test_one_batch_is_repeated() -> None:
    prepared = object()
    trainer = SimpleNamespace(_prepare_sample=lambda sample: (prepared, False))
    seen: list[Any] = []
    step = fixed_batch.repeating(lambda _, samples: seen.append(samples), warmup=2, updates=3)
    with pytest.raises(fixed_batch.Measured) as found:
        step(trainer, ["batch"])
    assert found.value.args[0] >= 0 and seen == [[prepared]] * 5


@pytest.mark.slow
def test_timms_loop_says_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    words = ["vit_tiny_patch16_224", "32", "2", "--device", "cpu", "--warmup", "1", "--updates", "1", "--repeats", "2"]
    assert images.timed_speed("timm_loop", words, 2) > 0
    shown = capfd.readouterr().err
    assert "timm_loop.py: imported timm" in shown and "timm_loop.py: first update" in shown
    assert shown.count(" ms an update") == 2
