"""benchmarks/compare.py on tiny models: what it refuses to time, and what its table says."""

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import compare, decoders, official, report, training
from benchmarks.decoders import Case, Size
from benchmarks.report import Row

TINY = shlex.split("--layers 2 --width 16 --heads 2 --ffn-width 32 --vocab-size 40 --repeats 2 --threads 1")
TRAIN = ["train", *TINY, *shlex.split("--lengths 12 --tokens-per-step 24")]
GENERATE = ["generate", *TINY, *shlex.split("--sentences 2 --source-length 6 --target-length 5 --beam 3")]
SMALL = Size(layers=2, width=4, heads=2, ffn_width=8, vocab_size=10, tokens_per_step=6)


@pytest.fixture
def torchscale() -> None:
    pytest.importorskip("torchscale", reason=f"needs {official.INSTALL}")


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take memory here, since a process of its own takes seconds to start."""
    monkeypatch.setattr(training, "in_fresh_process", lambda function, *arguments: function(*arguments))


def cells(text: str) -> list[list[str]]:
    """The table's lines below its head."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[0] == list(report.COLUMNS)
    return lines[2:]


def test_training(torchscale: None, one_process: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    assert compare.main([*TRAIN, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert output.read_text() == text
    assert text.startswith(f"`python -m benchmarks.compare {' '.join(TRAIN)} --output {output}`\n")
    assert f"torch {torch.__version__}, " in text
    assert "torchscale 0.3.0, " in text
    assert re.search(r"ours and official agree: in float32, 2 x 12, logits differ by \d.*, gradients by up to \d", text)
    rows = cells(text)
    assert [row[:2] for row in rows] == [["training, base, 2 x 12", "official"], ["training, base, 2 x 12", "ours"]]
    units = (r"[\d.]+ ms", r"[\d,]+ tokens/s", r"[\d.]+x", r"[\d.]+ GiB", r"\d+%")
    for row in rows:
        assert all(map(re.fullmatch, units, row[2:])), row
    assert rows[0][4] == "1.00x"


def test_generation(torchscale: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(GENERATE) == 0
    text = capsys.readouterr().out
    rows = cells(text)
    title = "generation, 2 x 6 to 5, beam 3"
    assert [row[:2] for row in rows] == [[title, side] for side in ("official", "ours", "stock")]
    assert all(re.fullmatch(r"[\d.,]+ sentences/s", row[3]) for row in rows)
    assert "ours and official agree: 0 of 6 hypotheses differ in tokens" in text


@pytest.mark.gpu
def test_training_on_a_gpu(torchscale: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([*TRAIN, "--device", "cuda", "--sizes", "125M"]) == 0
    text = capsys.readouterr().out
    assert [row[:2] for row in cells(text)] == [["training, 125M, 2 x 12", side] for side in ("official", "ours")]
    assert torch.cuda.get_device_name() in text
    assert "in float32, 1 x 12, logits differ by" in text


@pytest.mark.slow
def test_compiled(torchscale: None, one_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([*TRAIN, "--sides", "official", "--compile"]) == 0
    text = capsys.readouterr().out
    assert [row[1] for row in cells(text)] == ["official", "ours, compiled"]
    assert "ours, compiled and official agree" in text


def shifted_parameter(name: str) -> Callable[[nn.Module], None]:
    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 0.05

    return spoil


def shifted_logits(model: nn.Module) -> None:
    """Which the loss does not see."""
    model.register_forward_hook(lambda _, __, output: (output[0] + 0.1, *output[1:]))


def wrong_gradient(model: nn.Module) -> None:
    model.get_parameter("layers.0.ffn.fc1.bias").register_hook(lambda gradient: 1.001 * gradient)


def lost_gradient(model: nn.Module) -> None:
    model.get_parameter("layers.0.ffn.fc1.bias").register_hook(lambda gradient: gradient * torch.nan)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(shifted_parameter("layers.1.self_attn.out_proj.weight"), id="weight"),
        pytest.param(shifted_logits, id="logits"),
        pytest.param(wrong_gradient, id="gradient"),
        pytest.param(lost_gradient, id="nan"),
    ],
)
def test_refuses_to_time_another_training_step(
    torchscale: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoil: Callable
) -> None:
    build = decoders.build

    def spoilt(side: str, case: Case, weights: dict | None) -> nn.Module:
        model = build(side, case, weights)
        if side == report.OURS:
            spoil(model)
        return model

    monkeypatch.setattr(training, "build", spoilt)
    monkeypatch.setattr(training, "time_in_turns", lambda *_, **__: pytest.fail("timed"))
    assert compare.main(TRAIN) == 1
    printed = capsys.readouterr()
    assert (
        "compare.py: training, base, 2 x 12: ours and official disagree: in float32, 2 x 12, logits differ by"
        in printed.err
    )
    assert [row[1:] for row in cells(printed.out)] == [
        [side, "not timed: disagreement", "", "", "", ""] for side in ("official", "ours")
    ]


def test_refuses_to_time_other_hypotheses(
    torchscale: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = pytest.importorskip("generation", reason="needs fairseq", exc_type=ImportError)
    build = generation.build_models

    def spoilt(*arguments: object) -> dict[str, nn.Module]:
        models = build(*arguments)
        shifted_parameter("decoder.layers.0.encoder_attn.v_proj.weight")(models[report.OURS])
        return models

    monkeypatch.setattr(generation, "build_models", spoilt)
    monkeypatch.setattr(generation, "time_in_turns", lambda *_, **__: pytest.fail("timed"))
    assert compare.main(GENERATE) == 1
    assert "beam 3: ours and official disagree: " in capsys.readouterr().err


def test_rows_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One side out of memory; utilisation by hand."""

    def measure(_: Case, side: str, *__: object) -> training.Measured:
        if side == report.OFFICIAL:
            raise torch.OutOfMemoryError
        return training.Measured(seconds=0.5, memory=3 * 2**30)

    monkeypatch.setattr(training, "check_agreement", lambda *_: ["agree"])
    monkeypatch.setattr(training, "official_weights", lambda _: {})
    monkeypatch.setattr(training, "_measure_alone", measure)
    case = Case("125M", replace(SMALL, tokens_per_step=15), 5, "cuda", torch.bfloat16, seed=1)
    rows, notes = training.compare_training(
        case, [report.OFFICIAL, report.OURS], repeats=1, matmul_rate=4 * 30240.0, torchscale=None
    )
    assert notes == ["agree"]
    assert rows == [
        Row("training, 125M, 3 x 5", "official", problem="out of memory"),
        Row("training, 125M, 3 x 5", "ours", 0.5, 3 * 2**30, items=15, unit="tokens", utilisation=0.5),
    ]


def test_table_by_hand() -> None:
    rows = [
        Row("a", "official", 2.0, items=400, unit="tokens"),
        Row("a", "ours", 0.5, 3 * 2**29, 400, "tokens", 0.374),
        Row("b", "official", problem="out of memory"),
        Row("b", "stock", 10.0, items=16, unit="sentences"),
    ]
    assert cells(report.table(rows)) == [
        ["a", "official", "2.00 s", "200 tokens/s", "1.00x", "", ""],
        ["a", "ours", "500.0 ms", "800 tokens/s", "4.00x", "1.50 GiB", "37%"],
        ["b", "official", "out of memory", "", "", "", ""],
        ["b", "stock", "10.00 s", "1.60 sentences/s", "", "", ""],
    ]


def test_without_torchscale(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert compare.main([*TRAIN, "--torchscale", str(tmp_path)]) == 2
    assert f"is not in --torchscale {tmp_path}; {official.INSTALL}" in capsys.readouterr().err
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert compare.main(TRAIN) == 2
    message = "official TorchScale is not installed; pip install --no-deps torchscale==0.3.0, or "
    assert message in capsys.readouterr().err


def test_stand_ins_do_not_stay(torchscale: None) -> None:
    official.load_official(None)
    assert "torchscale" in sys.modules
    assert not any(name.split(".")[0] in ("fairscale", "timm") for name in sys.modules)


def test_flops_by_hand() -> None:
    matrices = 2 * (4 * 16 + 2 * 32)
    attention = 12 * 2 * 4 * 5 / 2
    assert decoders.flops_per_step(SMALL, batch=3, length=5) == 15 * (6 * matrices + 6 * 40 + attention) == 30240


def test_flops_as_torch_counts_them(torchscale: None) -> None:
    """TorchScale computes all scores, where a causal model needs half."""
    from torch.utils.flop_counter import FlopCounterMode

    official.load_official(None)
    case = Case("", SMALL, 6, "cpu", torch.float32, seed=1)
    model = decoders.build(report.OFFICIAL, case, None)
    with FlopCounterMode(display=False) as counter:
        decoders.training_step(model, case.tokens())
    superfluous = 6 * 12 * 2 * 4 * 6 / 2
    assert counter.get_total_flops() == decoders.flops_per_step(SMALL, batch=1, length=6) + superfluous
