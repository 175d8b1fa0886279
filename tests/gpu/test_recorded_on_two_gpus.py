"""Updates that two GPUs record as CUDA graphs, and whose gradients they sum afterwards."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import words
from tests.fairseq_cli import run_processes, tiny_language_data
from tests.gpu.devices import visible
from tests.gpu.replays import TELLING

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]
OPTIONS = ["--optimizer", "sgd", "--lr", "0.1", "--dropout", "0", "--compile", "--max-update", "12"]
OPTIONS += ["--criterion", "linear_cross_entropy", "--disable-validation"]


def train(folder: Path, name: str, gpus: int, *flags: str) -> int:
    """Train with so many GPUs. Returns the number of replays."""
    given = [word for word in words(tiny_language_data(folder), folder / name) if word != "--cpu"]
    given += [*OPTIONS, *flags]
    done = run_processes(gpus, "train", given, before=TELLING, environment=visible(gpus), timeout=120)
    return done.check().output.count("replayed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In whose part "one" there are the weights of one GPU."""
    folder = tmp_path_factory.mktemp("recorded")
    train(folder, "one", 1, "--update-freq", "2")
    return folder


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_two_gpus_train_what_one_does(backend: str, folder: Path) -> None:
    replays = train(folder, backend, 2, "--ddp-backend", backend)
    assert replays >= 4
    assert_same_weights(folder / "one", folder / backend, 1e-4)
