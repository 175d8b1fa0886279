"""--fp16 in several processes, whose check of gradients waits for the next update, against fairseq's own check."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import weights
from tests.distributed.short_training import words
from tests.fairseq_cli import run_processes, tiny_language_data
from torchscale_fairseq.checkpoints.reading import load_checkpoint

DEFERRED = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.training import deferring_trainer
check = deferring_trainer.DeferringTrainer.check_last_update
def check_and_tell(self):
    if self._unread is not None and self._unread.has_failed():
        print("found late")
    return check(self)
deferring_trainer.DeferringTrainer.check_last_update = check_and_tell
"""
AT_ONCE = f"{DEFERRED}\ndeferring_trainer.can_wait = lambda *_: False\n"
FLAGS = ["--fp16", "--fp16-init-scale", "65536", "--fp16-scale-window", "2", "--optimizer", "fused_adam_torch"]
FLAGS += ["--lr", "1e-3", "--max-update", "8", "--dropout", "0.1", "--log-interval", "100", "--batch-size", "2"]


@pytest.mark.parametrize("backend", ["pytorch_ddp", "fully_sharded"])
def test_all_processes_skip_the_same_updates(backend: str, tmp_path: Path) -> None:
    """The loss scale doubles every other update until gradients overflow, and once more."""
    data, outputs = tiny_language_data(tmp_path), []
    for name, before in (("stock", AT_ONCE), ("ours", DEFERRED)):
        flags = [*words(data, tmp_path / name), *FLAGS, "--ddp-backend", backend]
        outputs.append(run_processes(2, "train", flags, before=before).check().output)
    overflows = [output.count("gradient overflow detected") for output in outputs]
    assert overflows[0] == overflows[1] > 1
    assert "found late" not in outputs[0] and "found late" in outputs[1]
    stock, ours = weights(tmp_path / "stock"), weights(tmp_path / "ours")
    assert stock.keys() == ours.keys()
    for name, value in stock.items():
        assert torch.equal(ours[name], value)
    scales = [load_checkpoint(tmp_path / name / "checkpoint_last.pt") for name in ("stock", "ours")]
    assert scales[0]["last_optimizer_state"]["loss_scale"] == scales[1]["last_optimizer_state"]["loss_scale"]
