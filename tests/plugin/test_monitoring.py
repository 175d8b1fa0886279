"""What a run says of its speed and its layers: read back from TensorBoard's files and the log."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.logging import metrics

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq, run_processes, tiny_language_data
from tests.plugin.shrunk import EXPERTS, shrunk
from tests.tools.tensorboard_logs import scalars, total
from torchscale_fairseq.core.config import DecoderConfig
from torchscale_fairseq.core.flops import Load, training_flops
from torchscale_fairseq.hooks.monitoring.layer_norms import layer_of
from torchscale_fairseq.hooks.monitoring.speed import SpeedMeter, known_peak, speed_meter

LAYERS = {"decoder.embed_tokens", "decoder.layers.0", "decoder.layer_norm", "decoder.output_projection"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("monitoring-data"))


def train(data: Path, folder: Path, *flags: object, processes: int = 1) -> Finished:
    arguments = [data, *shrunk("gpt_magneto_small"), *FEW_UPDATES, "--task", "language_modeling", "--dropout", "0"]
    arguments += ["--tokens-per-sample", "16", "--batch-size", "4", "--cpu", "--save-dir", folder, "--no-save"]
    arguments += ["--tensorboard-logdir", folder / "tensorboard", "--log-norms-interval", "2", "--max-update", "4"]
    arguments += ["--disable-validation", *flags]
    return run_fairseq("train", arguments) if processes == 1 else run_processes(processes, "train", arguments)


@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (1, []),
        (1, ["--fp16", "--clip-norm", "0.1"]),
        (2, ["--fp16", "--criterion", "moe_cross_entropy", "--moe-clip", "plain", *EXPERTS]),
    ],
    ids=["float32", "fp16", "two_processes_experts_fp16"],
)
def test_norms_add_up(processes: int, flags: list[str], data: Path, tmp_path: Path) -> None:
    """Over layers, to the norm that fairseq logs; SGD's update is the clipped gradient times the learning rate."""
    done = train(data, tmp_path, "--optimizer", "sgd", "--lr", "0.01", *flags, processes=processes).check()
    norms, stock = scalars(tmp_path, "norms"), scalars(tmp_path, "train_inner")
    assert {tag.partition("/")[2] for tag in norms} == LAYERS
    for update in (2, 4):
        norm = total(norms, "gradient", update)
        assert norm == pytest.approx(stock["gnorm"][update], rel=2e-3)
        applied = min(norm, 0.1) if "--clip-norm" in flags else norm
        assert total(norms, "update", update) == pytest.approx(0.01 * applied, rel=2e-3)
    assert all(set(values) == {2, 4} for values in norms.values())
    assert "mfu) is not logged" in done.output and "mfu" not in stock
    assert stock["tps_device"][4] > 0


def test_utilisation(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--peak-tflops", "1e-4").check()
    assert scalars(tmp_path, "train_inner")["mfu"][4] > 0


def test_rates_are_of_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates of 64 tokens that two processes share, four seconds apart; the first one starts the clock."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    sizes: dict[str, Any] = {
        "decoder_layers": 1,
        "decoder_embed_dim": 16,
        "decoder_ffn_embed_dim": 32,
        "vocab_size": 40,
    }
    config = DecoderConfig(**sizes, decoder_attention_heads=2)
    tokens = torch.full((4, 16), 5)
    sample: dict[str, Any] = {"net_input": {"src_tokens": tokens}, "target": tokens, "ntokens": 64}
    meter = SpeedMeter(config, peak=1e6)
    with metrics.aggregate(new_root=True) as logged:
        for now[0] in (0.0, 4.0):
            meter.log(*meter.measure([sample], shared_by=2))
        found = logged.get_smoothed_values()
    assert found["tps_device"] == 64 / 2 / 4
    flops = training_flops(config, decoder=Load((16,) * 4), predictions=64) / 2 / 4
    assert found["mfu"] == pytest.approx(flops / 1e6, abs=6e-4), "three decimals are kept"


def test_norms_need_tensorboard(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path, "--tensorboard-logdir", "")
    assert (
        done.returncode and "--log-norms-interval (2) writes to TensorBoard: give --tensorboard-logdir" in done.output
    )


def test_flops_of_a_batch() -> None:
    """Padding does not count, on either side of a text."""
    sizes: dict[str, Any] = {"decoder_layers": 2, "decoder_embed_dim": 8, "decoder_ffn_embed_dim": 16, "vocab_size": 40}
    config = DecoderConfig(**sizes, decoder_attention_heads=2)
    tokens = torch.tensor([[5, 6, 7, 1], [1, 1, 8, 9]])
    sample: dict[str, Any] = {"net_input": {"src_tokens": tokens}, "target": tokens, "ntokens": 5}
    expected = training_flops(config, decoder=Load((3, 2)), predictions=5)
    assert SpeedMeter(config, None).flops(sample) == expected


@pytest.mark.parametrize(
    ("device", "half", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", True, 989),
        ("NVIDIA H100 PCIe", True, 756),
        ("NVIDIA A100-SXM4-80GB", False, 19.5),
        ("NVIDIA L40S", True, 362),
        ("NVIDIA L4", True, 121),
        ("cpu", True, None),
    ],
)
def testknown_peaks(device: str, half: bool, peak: float | None) -> None:
    assert known_peak(device, half=half) == peak


def test_other_models_are_left_alone() -> None:
    assert speed_meter(torch.nn.Linear(2, 2), torch.device("cpu"), None, half=False) is None


def test_layers() -> None:
    names = ["decoder.layers.11.self_attn.q_proj.weight", "encoder.embed_tokens.weight", "scale"]
    assert [layer_of(name) for name in names] == ["decoder.layers.11", "encoder.embed_tokens", "scale"]
    assert not re.search(r"\.weight", layer_of(names[0]))
