"""Updates that two GPUs record as CUDA graphs, and whose gradients they sum during replays or after them."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import words
from tests.fairseq_cli import run_processes, tiny_language_data
from tests.gpu.devices import visible
from tests.gpu.replays import TELLING
from tests.plugin.shrunk import EXPERTS
from torchscale_fairseq.hooks.training.gradient_sums import EXTERNAL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]
OPTIONS = ["--optimizer", "sgd", "--lr", "0.1", "--dropout", "0", "--compile", "--max-update", "12"]
OPTIONS += ["--criterion", "linear_cross_entropy", "--disable-validation"]


SUMMING = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.training.gradient_sums import GradientSums
sum_after = GradientSums._sum_after
def sum_after_and_tell(self, mark):
    print("summed early", flush=True)
    sum_after(self, mark)
GradientSums._sum_after = sum_after_and_tell
"""
"""Code for processes of fairseq-train: each bucket that is summed during a replay prints a line."""


def train(folder: Path, name: str, gpus: int, *flags: str) -> str:
    """Train with so many GPUs. Returns what the processes print."""
    given = [word for word in words(tiny_language_data(folder), folder / name) if word != "--cpu"]
    given += [*OPTIONS, *flags]
    before = TELLING if gpus == 1 else TELLING + SUMMING
    return run_processes(gpus, "train", given, before=before, environment=visible(gpus), timeout=120).check().output


@pytest.mark.parametrize(("backend", "freq"), [("pytorch_ddp", 1), ("pytorch_ddp", 2), ("legacy_ddp", 1)], ids=str)
def test_two_gpus_train_what_one_does(backend: str, freq: int, tmp_path: Path) -> None:
    train(tmp_path, "one", 1, "--update-freq", str(2 * freq))
    two = ("--update-freq", str(freq), "--ddp-backend", backend, "--bucket-cap-mb", "0")
    output = train(tmp_path, "two", 2, *two)
    assert output.count("replayed") >= 4
    assert ("summed early" in output) is (EXTERNAL and backend == "pytorch_ddp")
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-4)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="no Hopper GPU"
)
@pytest.mark.parametrize("capacity", [[], ["--moe-dropless"]], ids=["capacity", "dropless"])
def test_two_gpus_train_the_experts_of_one(capacity: list[str], tmp_path: Path) -> None:
    """The recordings hold the exchange of tokens. Weights of norms are near 1, where bfloat16 has steps of 4e-3 and
    8e-3; others end up to 7e-2 from where they began."""
    flags = ["--bf16", "--clip-norm", "0.5", *EXPERTS, "--criterion", "moe_linear_cross_entropy", *capacity]
    train(tmp_path, "one", 1, *flags, "--update-freq", "2")
    assert train(tmp_path, "two", 2, *flags).count("replayed") >= 4
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-2)
