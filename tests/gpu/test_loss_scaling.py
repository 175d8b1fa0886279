"""--fp16 on a GPU: no update waits for the device, and updates that overflow are skipped as by fairseq."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.fairseq_cli import tiny_language_data
from tests.helpers import assert_close
from tests.plugin.trainers import make_trainer, update
from torchscale_fairseq.hooks.training import deferring_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FLAGS = ["--optimizer", "fused_adam_torch", "--lr", "1e-3", "--criterion", "linear_cross_entropy"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("precision", ["--bf16", "--fp16", "--memory-efficient-fp16"])
def test_an_update_does_not_wait(precision: str, data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path, *FLAGS, precision, device="cuda")
    for seed in range(3):
        update(trainer, seed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(trainer, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def after_overflows(data: Path, folder: Path, *flags: str) -> Any:
    """A trainer whose loss scale doubles after every third update, from one that is nearly too high."""
    scale = ["--fp16", "--fp16-init-scale", "65536", "--fp16-scale-window", "3"]
    trainer = make_trainer(data, folder, *FLAGS, *scale, *flags, device="cuda")
    for seed in range(20):
        update(trainer, seed % 3)
    trainer.check_last_update()
    return trainer


@pytest.mark.parametrize("flags", [[], ["--compile"]], ids=["eager", "recorded"])
def test_overflows_are_skipped(
    flags: list[str], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    found = after_overflows(data, tmp_path, *flags)
    lines = [record.message for record in caplog.records if "gradient overflow detected" in record.message]
    assert lines
    caplog.clear()
    monkeypatch.setattr(deferring_trainer, "can_wait", lambda *_: False)
    stock = after_overflows(data, tmp_path, *flags)
    assert lines == [record.message for record in caplog.records if "gradient overflow detected" in record.message]
    assert found.get_num_updates() == stock.get_num_updates() < 20
    assert vars(found.optimizer.scaler) == vars(stock.optimizer.scaler)
    for one, other in zip(found.get_model().parameters(), stock.get_model().parameters(), strict=True):
        assert_close(one.detach(), other.detach(), "float16")
