"""benchmarks/longvit.py on images of a few patches, with a layer of the model."""

from dataclasses import replace

import pytest

from benchmarks import large_inputs, longvit
from torchscale_fairseq import LongViTClassifier, LongViTConfig

SMALL = ["--sizes", "64", "128", "--dense-up-to", "64", "--repeats", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> list[LongViTConfig]:
    """The configs of what is measured."""
    found: list[LongViTConfig] = []

    def build(config: LongViTConfig, classes: int) -> LongViTClassifier:
        found.append(config)
        return LongViTClassifier(replace(config, encoder_layers=1), classes)

    monkeypatch.setattr(longvit, "LongViTClassifier", build)
    monkeypatch.setattr(large_inputs, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    return found


def test_table_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert longvit.main(SMALL) == 0
    found = capsys.readouterr()
    table = [[cell.strip() for cell in line.split("|")[1:]] for line in found.out.splitlines() if line.startswith("| ")]
    assert [(title, side) for title, side, *_ in table[2:]] == [
        ("inference, 64 pixels (4 patches)", "ours"),
        ("inference, 64 pixels (4 patches)", "dense"),
        ("training step, 64 pixels (4 patches)", "ours"),
        ("training step, 64 pixels (4 patches)", "dense"),
        ("inference, 128 pixels (16 patches)", "ours"),
        ("training step, 128 pixels (16 patches)", "ours"),
    ]
    assert all("GiB" in row[5] for row in table[2:]) and found.err.count(" s\n") == 6
    assert found.out.count("microseconds per patch: ") == 2
    assert found.out.count("times as fast as with dense attention") == 2


def test_the_released_model_is_measured(built: list[LongViTConfig]) -> None:
    """Dense attention is a single segment of all patches; training recomputes the layers."""
    longvit.main(SMALL)
    ours, dense = LongViTConfig(img_size=64), LongViTConfig(img_size=64, segment_length=[4], dilated_ratio=[1])
    for config, like, training in zip(built, [ours, dense] * 2 + [ours] * 2, [0, 0, 1, 1, 0, 1], strict=True):
        assert config == replace(
            like, img_size=config.img_size, checkpoint_activations=bool(training), ffn_chunk_size=8192
        )


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(large_inputs, "in_fresh_process", lambda *_: None)
    assert longvit.main(["--sizes", "64", "--dense-up-to", "1"]) == 0
    found = capsys.readouterr().out
    assert found.count("out of memory") == 2 and "microseconds" not in found
