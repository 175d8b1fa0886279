"""Gradients that processes sum after the backward pass, as recorded updates on several GPUs need it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fairseq")

from torch import nn

from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import UPDATES, words
from tests.emulated_graphs import EMULATING
from tests.fairseq_cli import run_fairseq, run_gloo, run_processes, tiny_language_data
from torchscale_fairseq.hooks.training import late_reduction
from torchscale_fairseq.hooks.training.late_reduction import can_sum_late

AS_IF_RECORDED = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.training import late_reduction, trainer
trainer.can_record = lambda *_: True
trainer.StepGraphs = lambda train_step: train_step
reduce = late_reduction.LateReduction.all_reduce_grads
def reduce_and_tell(self):
    reduce(self)
    print(f"summed late {self.accumulate_grads}", flush=True)
late_reduction.LateReduction.all_reduce_grads = reduce_and_tell
"""
FROM_HALVES = """
from torchscale_fairseq import plugin
plugin.register()
from tests.plugin.halves import update_halves
from torchscale_fairseq.optim import fused_adam_torch
def update_and_tell(*tensors):
    update_halves(*tensors)
    print("read halves", flush=True)
fused_adam_torch.DEVICES = ("cpu",)
fused_adam_torch.update_from_halves = update_and_tell
"""
"""As on a GPU."""


@pytest.mark.parametrize("freq", [1, 2])
def test_two_processes_train_what_one_does(freq: int, tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    options = ["--optimizer", "sgd", "--lr", "0.1", "--max-update", "2", "--dropout", "0"]
    run_fairseq("train", [*words(data, tmp_path / "one"), *options, "--update-freq", 2 * freq]).check()
    two = [*words(data, tmp_path / "two"), *options, "--update-freq", freq]
    done = run_processes(2, "train", two, before=AS_IF_RECORDED).check()
    assert done.output.count("summed late False") == 4
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)


@pytest.mark.parametrize("late", [AS_IF_RECORDED, ""], ids=["after", "in the backward pass"])
def test_the_optimizer_reads_sums_in_half_precision(late: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    data = tiny_language_data(tmp_path)
    options = ["--bf16", "--optimizer", "fused_adam_torch", "--clip-norm", "0.5", "--dropout", "0"]
    for name, before in (("usual", ""), ("halves", FROM_HALVES)):
        done = run_processes(2, "train", [*words(data, tmp_path / name), *options], before=before + late).check()
    assert done.output.count("read halves") == 2 * UPDATES
    assert_same_weights(tmp_path / "usual", tmp_path / "halves", 1e-4)


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_recorded_updates_are_those_of_one_process(backend: str, tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    options = ["--optimizer", "sgd", "--lr", "0.1", "--max-update", "12", "--dropout", "0", "--disable-validation"]
    options += ["--criterion", "linear_cross_entropy"]
    run_fairseq("train", [*words(data, tmp_path / "one"), *options, "--update-freq", 2]).check()
    two = [*words(data, tmp_path / "two"), *options, "--ddp-backend", backend]
    replays = run_processes(2, "train", two, before=EMULATING).check().output.count("replayed")
    assert replays >= 4
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)


@pytest.mark.parametrize("at_once", [2**26, 28, 1])
def test_gradients_are_averaged(at_once: int) -> None:
    """Of two types and layouts, and where a process or both have none; a parameter that does not learn gets none."""
    done = run_gloo(
        2,
        f"""
        import torch
        from torch import nn
        from torchscale_fairseq.hooks.training import late_reduction
        from torchscale_fairseq.hooks.training.late_reduction import LateReduction
        late_reduction.AT_ONCE = {at_once}

        rank = torch.distributed.get_rank()
        model = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (5,), (), (4,), (3,))])
        model[1].data = model[1].bfloat16()
        model[4].requires_grad_(False)
        laid_out = torch.arange(6.0).view(3, 2).t()
        model[0].grad = laid_out * (rank + 1)
        model[1].grad = torch.full((5,), rank + 1.0).bfloat16()
        if rank:
            model[2].grad = torch.tensor(3.0)
        wrapper = LateReduction(model, torch.distributed.group.WORLD)
        with wrapper.no_sync():
            wrapper.all_reduce_grads()
        assert torch.equal(model[0].grad, laid_out * (rank + 1))
        wrapper.all_reduce_grads()
        assert torch.equal(model[0].grad, laid_out * 1.5) and float(model[2].grad) == 1.5
        assert torch.equal(model[1].grad, torch.full((5,), 1.5).bfloat16())
        assert torch.equal(model[3].grad, torch.zeros(4)) and model[4].grad is None
        """,
    )
    assert done.check().stdout.count("passed") == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"ddp_backend": "legacy_ddp"}, True),
        ({"ddp_backend": "slowmo"}, False),
        ({"ddp_backend": "fully_sharded"}, False),
        ({"ddp_comm_hook": "fp16"}, False),
        ({"broadcast_buffers": True}, False),
        ({"use_bmuf": True}, False),
        ({"heartbeat_timeout": 60}, False),
        ({"most": 11}, False),
        ({"most": 11, "ddp_backend": "legacy_ddp"}, True),
    ],
    ids=str,
)
def test_which_runs_sum_late(changes: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three numbers of four bytes: more than 11 bytes are left to a backend that overlaps."""
    given = {"ddp_backend": "pytorch_ddp", "ddp_comm_hook": "none", "broadcast_buffers": False, "use_bmuf": False}
    given |= {"heartbeat_timeout": -1} | changes
    monkeypatch.setattr(late_reduction, "MOST_BYTES", given.pop("most", 12))
    use_bmuf = given.pop("use_bmuf")
    cfg = SimpleNamespace(
        distributed_training=SimpleNamespace(**given), optimization=SimpleNamespace(use_bmuf=use_bmuf)
    )
    assert can_sum_late(cfg, nn.Linear(3, 1, bias=False)) is expected
