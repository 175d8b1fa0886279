"""torchscale-fairseq plot-expert-load: from TensorBoard logs to a table and a figure."""

from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tests.tools.in_process import run_tool
from tests.tools.tensorboard_logs import write_logs


def test_table_and_figure(tmp_path: Path) -> None:
    experts = write_logs(tmp_path / "experts", moe_load_most=60.0, moe_load_least=20.0, moe_dropped=1.5, ppl=4.0)
    dense = write_logs(tmp_path / "dense", ppl=4.0)
    done = run_tool("plot-expert-load", experts, dense, "--output", tmp_path / "load.png")
    head, first, second = (line.split() for line in done.stdout.splitlines()[:3])
    assert head[:4] == ["run", "update", "loss", "nll_loss"]
    assert first == ["experts", "20", "-", "2.000", "120.000", "40.000", "3.000", "-", "-", "-"]
    assert second[:5] == ["dense", "20", "-", "2.000", "-"]
    if find_spec("matplotlib"):
        assert done.returncode == 0 and (tmp_path / "load.png").stat().st_size > 10_000
    else:
        assert done.last_line.endswith(": this needs matplotlib, which is not installed: pip install matplotlib")


def test_a_folder_without_logs_is_named(tmp_path: Path) -> None:
    done = run_tool("plot-expert-load", tmp_path, "--output", tmp_path / "load.png")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"torchscale-fairseq plot-expert-load: {tmp_path} has no TensorBoard logs of fairseq; train with"
    )
