"""Speech models beyond what every registered model is tested for: starting from another model's encoder, lengths."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("fairseq")

from fairseq.models import build_model
from fairseq.models.speech_to_text import s2t_transformer

from tests.plugin.registered import dictionary, parse, task
from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.core.errors import InputError

SMALL = "--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --encoder-ffn-embed-dim 32 --decoder-embed-dim 32"


def model(*flags: str, words: int = 30, ctc_weight: float = 0.3, speech: Any = None) -> Any:
    options = parse("s2t_magneto_small", *SMALL.split(), "--decoder-ffn-embed-dim", "32", *flags)
    options.ctc_weight = ctc_weight
    given = task(target=dictionary(words))
    given.data_cfg = speech or given.data_cfg
    return build_model(options, given)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    torch.save({"model": model().state_dict()}, tmp_path / "recogniser.pt")
    return tmp_path / "recogniser.pt"


def test_an_encoder_starts_from_a_checkpoint(checkpoint: Path) -> None:
    """Of a model with other labels, whose projection stays as it was drawn."""
    given = torch.load(checkpoint)["model"]
    started = model("--load-pretrained-encoder-from", str(checkpoint), words=40)
    for name, value in started.encoder.state_dict().items():
        assert name.startswith("ctc_proj.") or torch.equal(value, given[f"encoder.{name}"])
    assert started.encoder.ctc_proj.out_features == 40


def test_an_encoder_that_cannot_start(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has another encoder, which differs in .* and .* more parameters; give"):
        model("--load-pretrained-encoder-from", str(checkpoint), "--encoder-layers", "2")
    with pytest.raises(InputError, match=r"--load-pretrained-encoder-from none\.pt: there is no such file"):
        model("--load-pretrained-encoder-from", "none.pt")


def test_without_ctc_there_is_no_projection() -> None:
    assert model(ctc_weight=0).encoder.ctc_proj is None


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def stock() -> nn.Module:
    options = SimpleNamespace(ctc_weight=0.3, input_feat_per_channel=80, max_source_positions=9, max_target_positions=9)
    s2t_transformer.s2t_transformer_xs(options)
    return s2t_transformer.S2TTransformerModel.build_model(options, task(target=dictionary(200)))


@pytest.mark.parametrize("kind", ["magneto", "deepnorm", "swiglu"])
def test_small_models_have_the_size_of_stocks(kind: str) -> None:
    """What the quick start compares, to 2 %."""
    options = parse(f"s2t_{kind}_small")
    options.ctc_weight = 0.3
    with torch.device("meta"):
        own, stocks = build_model(options, task(target=dictionary(200))), stock()
    assert size(own) == pytest.approx(size(stocks), rel=0.02)


def test_lengths_are_in_units_of_the_input() -> None:
    """Frames, or samples of raw audio, whose positions are those of its frames."""
    assert model().max_positions() == (1024, 1024)
    audio = model(speech=SimpleNamespace(use_audio_input=True, use_sample_rate=1000))
    assert audio.max_positions() == (1024, 1024)
    assert audio.encoder.config.max_source_positions == 100 == audio.encoder.config.frames(1024)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--conv-kernel-sizes", "4,5"],
            r"--conv-kernel-sizes \(4,5\) must be odd whole numbers separated by commas",
        ),
        (["--conv-channels", "7"], r"--conv-channels \(7\) must be even, since gated linear units halve it"),
    ],
)
def test_convolutions_that_cannot_be_built(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(*flags)
