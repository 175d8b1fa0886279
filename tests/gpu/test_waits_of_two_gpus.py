"""Updates of two GPUs in which no host waits for its device."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.distributed.fully_sharded import SHARDED
from tests.distributed.short_training import words
from tests.fairseq_cli import run_processes, tiny_language_data
from tests.gpu.devices import visible

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]
WATCHING = """
import torch
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.training.trainer import Trainer
train_step = Trainer.train_step
def watched(self, *args, **kwargs):
    third = self.get_num_updates() == 2
    torch.cuda.set_sync_debug_mode("error" if third else "default")
    try:
        output = train_step(self, *args, **kwargs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if third:
        print("did not wait", flush=True)
    return output
Trainer.train_step = watched
"""
BACKENDS = {"pytorch_ddp": [], "legacy_ddp": ["--ddp-backend", "legacy_ddp"], "fully_sharded": SHARDED}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_does_not_wait(backend: str, tmp_path: Path) -> None:
    options = ["--bf16", "--optimizer", "fused_adam_torch", "--criterion", "linear_cross_entropy", "--clip-norm", "1"]
    options += ["--log-interval", "100", "--disable-validation", "--no-save", *BACKENDS[backend]]
    given = [word for word in words(tiny_language_data(tmp_path), tmp_path) if word != "--cpu"]
    given += options
    done = run_processes(2, "train", given, before=WATCHING, environment=visible(2), timeout=120).check()
    assert done.output.count("did not wait") == 2
