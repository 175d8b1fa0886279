"""benchmarks/retention.py on a tiny layer: its table, and what it refuses to time."""

import argparse
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks import official, retention, retention_figure, retention_gpu, retention_steps
from benchmarks.report import DisagreementError, Row
from benchmarks.retention_gpu import PLAIN
from torchscale_fairseq.core.ops.retention import parallel_retention
from torchscale_fairseq.core.ops.retention_tables import log_decays

TINY = shlex.split("--width 128 --value-width 24 --heads 2 --repeats 1 --threads 1 --lengths 12")
DECODE = shlex.split("decode --layers 1 --sentences 2 --prompts 5 9 --new-tokens 32")


@pytest.fixture(autouse=True)
def torchscale(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchscale", reason=f"needs {official.INSTALL}")
    official.load_official(None)
    monkeypatch.setattr(retention, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(retention_steps, "_official", None)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]


def test_training_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert retention.main(["train", *TINY]) == 0
    printed = capsys.readouterr().out
    assert [row[1] for row in rows(printed)[2:]] == ["official", "ours", "attention", "official", "ours"]
    assert printed.startswith("`python -m benchmarks.retention train")
    assert printed.count("output and gradients differ by up to") == 2


def test_a_run_that_is_cut_off_leaves_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results(options: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
        yield [Row("layer, training step", "ours", 0.5, 1000, 8, "tokens")], ["a note"]
        raise KeyboardInterrupt

    monkeypatch.setattr(retention, "results", results)
    with pytest.raises(KeyboardInterrupt):
        retention.main(["train", *TINY, "--output", str(tmp_path / "table.md")])
    written = (tmp_path / "table.md").read_text()
    assert [row[1] for row in rows(written)[2:]] == ["ours"] and "a note" in written


def test_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    rows = [Row("layer, training step", side, n / 1e3, n * 1000, n, "tokens") for side in "ab" for n in (8, 16)]
    retention_figure.draw(rows, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


class HalvesRetention(nn.Module):
    """What fla's layer computes: it turns the two halves of a head's channels, and scales nothing but by its norm."""

    g_proj: nn.Linear

    def __init__(self, *, hidden_size: int, expand_v: float, num_heads: int, norm_eps: float):
        super().__init__()
        self.heads, self.eps = num_heads, norm_eps
        value = round(hidden_size * expand_v)
        for name, out in (("q", hidden_size), ("k", hidden_size), ("v", value), ("g", value)):
            setattr(self, f"{name}_proj", nn.Linear(hidden_size, out, bias=False))
        self.o_proj = nn.Linear(value, hidden_size, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(value // num_heads))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        q, k, v = (getattr(self, f"{n}_proj")(x).float().unflatten(-1, (self.heads, -1)) for n in "qkv")
        angles = torch.arange(x.size(1))[:, None, None] * 10000 ** -(torch.arange(0, q.size(-1), 2) / q.size(-1))

        def turned(y: torch.Tensor) -> torch.Tensor:
            a, b = y.chunk(2, -1)
            return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)

        output, _ = parallel_retention(turned(q), turned(k), v, log_decays(self.heads, "powers"))
        output = nn.functional.rms_norm(output, self.norm_weight.shape, self.norm_weight.float(), self.eps)
        return self.o_proj((output.flatten(-2) * nn.functional.silu(self.g_proj(x))).to(x.dtype)), None, None


def test_the_gpu_benchmark_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every side, agreement with fla's layer, and a side that does not fit in memory, which is not tried again."""
    for name in ("fla", "fla.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.modules["fla.layers"].MultiScaleRetention = HalvesRetention  # type: ignore[attr-defined]
    fits = lambda case, side: None if side == retention_gpu.OFFICIAL and case.length > 24 else 1  # noqa: E731
    monkeypatch.setattr(retention_gpu, "step_memory", fits)
    monkeypatch.setattr(retention_gpu, "Case", partial(retention_steps.Case, seed=2))
    monkeypatch.setattr(retention_gpu, "DEVICE", "cpu")
    options = argparse.Namespace(
        lengths=[24, 48, 96], width=128, value_width=216, heads=2, official_up_to=96, repeats=1
    )
    found = list(retention_gpu.results_on_gpu(options))
    notes = found[0][1]
    assert [note.partition(":")[0] for note in notes] == ["official", "ours", "flash-linear-attention", PLAIN]
    sides = [[row.side for row in rows if row.seconds is not None] for rows, _ in found[1:]]
    others = ["ours", "flash-linear-attention", PLAIN, "attention"]
    assert sides == [["official", *others], others, others]
    assert found[2][0][0].problem == "out of memory" and len(found[3][0]) == 4


def test_fla_must_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fla", "fla.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["fla.layers"].MultiScaleRetention = HalvesRetention  # type: ignore[attr-defined]
    monkeypatch.setattr(retention_gpu, "ALLOWED_BFLOAT16", 1e-6)
    case = retention_steps.Case(24, 128, 216, 2)
    with pytest.raises(DisagreementError, match="flash-linear-attention: differs from ours in float32"):
        retention_gpu.check_agreement(case, ["flash-linear-attention"])


def test_decoding_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert retention.main([*DECODE, *TINY]) == 0
    printed = capsys.readouterr().out
    assert [row[1] for row in rows(printed)[2:]] == ["attention", "ours"] * 2
    assert printed.count("times the tokens per second of attention") == 2


def test_nothing_that_differs_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(retention_steps, "ALLOWED", -1.0)
    assert retention.main(["train", *TINY]) == 1
    found = capsys.readouterr()
    assert "ours and official disagree: layer" in found.err and len(rows(found.out)) == 2
