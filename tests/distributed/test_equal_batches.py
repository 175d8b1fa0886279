"""Trainings whose experts gather the tokens of all processes while batches are of one size, recorded and not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")


from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import words
from tests.emulated_graphs import EMULATING
from tests.fairseq_cli import run_fairseq, run_gloo, run_processes, tiny_language_data
from tests.plugin.shrunk import EXPERTS
from tests.printed import assert_logged_alike
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.parallel.groups import ExpertSplit
from torchscale_fairseq.hooks.experts import equal_batches
from torchscale_fairseq.hooks.experts.equal_batches import compares_batches

OPTIONS = ["--optimizer", "sgd", "--lr", "0.1", "--max-update", "12", "--dropout", "0", "--clip-norm", "0.5", *EXPERTS]
OPTIONS += ["--criterion", "moe_linear_cross_entropy", "--moe-gate-loss-wt", "0.1", "--disable-validation"]
GATHERING = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.core.layers import moe
from torchscale_fairseq.hooks.experts import equal_batches
equal_batches.reads_counts = lambda *_: False
gather = moe.gather_choices
def gather_and_tell(*arguments):
    print("gathered", flush=True)
    return gather(*arguments)
moe.gather_choices = gather_and_tell
"""
ON_DEVICE = """
from tests.expert_rows_on_cpu import keep_counts_on_device
keep_counts_on_device()
"""
"""As on a GPU."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve updates of one process, in which batches of four sizes occur, the last of an epoch in the first of two
    processes alone."""
    folder = tmp_path_factory.mktemp("alone")
    done = run_fairseq("train", [*words(data, folder), *OPTIONS, "--update-freq", "4"]).check()
    (folder / "output.txt").write_text(done.output)
    return folder


@pytest.mark.parametrize(
    ("processes", "backend", "before"),
    [
        (2, "pytorch_ddp", GATHERING),
        (4, "legacy_ddp", GATHERING + ON_DEVICE),
        (2, "pytorch_ddp", EMULATING + GATHERING + ON_DEVICE),
        (2, "legacy_ddp", EMULATING + GATHERING + ON_DEVICE),
    ],
    ids=["two", "four", "two recorded", "two recorded, summed late"],
)
def test_processes_train_what_one_does(
    processes: int, backend: str, before: str, data: Path, alone: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, "--ddp-backend", backend, "--update-freq", 4 // processes]
    done = run_processes(processes, "train", [*words(data, tmp_path), *options], before=before).check()
    assert "gathered" in done.output
    assert ("replayed" in done.output) == (EMULATING in before)
    assert_same_weights(alone, tmp_path, 1e-5)
    assert_logged_alike(done.output, (alone / "output.txt").read_text(), ["gnorm"])


def test_one_process_leaves_parameters_without_gradients(data: Path, tmp_path: Path) -> None:
    """Their sums begin before those of the figures all the same, also for batches that differ."""
    unused = """
import os, torch
from torch.nn.functional import layer_norm
if os.environ["RANK"] == "1":
    torch.nn.LayerNorm.forward = lambda self, x: layer_norm(
        x, self.normalized_shape, self.weight.detach(), self.bias.detach(), self.eps
    )
"""
    before = EMULATING + GATHERING + ON_DEVICE + unused
    options = [*OPTIONS, "--bucket-cap-mb", "0", "--max-update", "6"]
    run_processes(2, "train", [*words(data, tmp_path), *options], before=before).check()


def test_batches_are_compared_by_shape_and_padding() -> None:
    """Each process says what its batch is like; both learn whether to go by it."""
    code = """
import torch
import torch.distributed as dist
from torchscale_fairseq.core.parallel.gathering import gathers
from torchscale_fairseq.core.parallel.groups import ExpertSplit
from torchscale_fairseq.hooks.experts.equal_batches import EqualBatches
from torchscale_fairseq.hooks.training.padding import note_no_padding

def batch(rows, length, padded=False, target=None):
    tokens = torch.zeros(rows, length)
    inputs = {"src_tokens": tokens if padded else note_no_padding(tokens)}
    inputs |= {} if target is None else {"prev_output_tokens": note_no_padding(torch.zeros(rows, target))}
    return {"net_input": inputs}

def step(name):
    return lambda sample, model, *, criterion: (name, gathers(ExpertSplit(4, size=2)), model, criterion)

compared = EqualBatches(step("usual"), step("equal"))
for ours, theirs, equal in [
    (batch(2, 3), batch(2, 3), True),
    (batch(2, 3), batch(3, 2), False),
    (batch(2, 3), batch(2, 3, padded=True), False),
    (batch(2, 3, padded=True), batch(2, 3, padded=True), False),
    (batch(2, 3, target=4), batch(2, 3, target=4), True),
    (batch(2, 3, target=4), batch(2, 3, target=5), False),
    ({}, {}, False),
]:
    for mine in ((ours, theirs), (theirs, ours)):
        expected = ("equal" if equal else "usual", equal, "model", "criterion")
        assert compared(mine[dist.get_rank()], "model", criterion="criterion") == expected
assert not gathers(ExpertSplit(4, size=2))
"""
    run_gloo(2, code).check()


class TestWhichTrainingsCompareBatches:
    @staticmethod
    def compares(split: ExpertSplit, **changes: Any) -> bool:
        given = {"bf16": True, "amp": False, "ddp_backend": "pytorch_ddp"} | changes
        backend = given.pop("ddp_backend")
        cfg: Any = SimpleNamespace(
            common=SimpleNamespace(**given), distributed_training=SimpleNamespace(ddp_backend=backend)
        )
        experts = Experts(split, 8, 16, gated=False, activation_fn="gelu", dropout=0.0, norm=None, eps=1e-5)
        return compares_batches(cfg, experts, torch.device("cuda"))

    @pytest.fixture(autouse=True)
    def kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a GPU that has them."""
        monkeypatch.setattr(equal_batches, "rows_refusal", lambda *_: None)

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    def test_two_to_four_processes(self, size: int) -> None:
        assert self.compares(ExpertSplit(8, size=size)) is (size in (2, 4))

    @pytest.mark.parametrize("changes", [{"bf16": False}, {"amp": True}, {"ddp_backend": "fully_sharded"}], ids=str)
    def test_options_that_keep_the_all_to_all(self, changes: dict[str, Any]) -> None:
        assert not self.compares(ExpertSplit(8, size=2), **changes)

    def test_kernels_that_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(equal_batches, "rows_refusal", lambda *_: "needs Triton")
        assert not self.compares(ExpertSplit(8, size=2))
