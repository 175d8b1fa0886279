"""Updates that two GPUs record as CUDA graphs, and whose gradients they sum afterwards."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import words
from tests.fairseq_cli import run_fairseq, run_processes, tiny_language_data
from tests.gpu.replays import TELLING

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_two_gpus_train_what_one_does(backend: str, tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    options = ["--optimizer", "sgd", "--lr", "0.1", "--dropout", "0", "--compile", "--max-update", "12"]
    options += ["--criterion", "linear_cross_entropy"]
    one, two = (
        [word for word in [*words(data, tmp_path / name), *options] if word != "--cpu"] for name in ("one", "two")
    )
    run_fairseq("train", [*one, "--update-freq", "2"], environment={"CUDA_VISIBLE_DEVICES": "0"}).check()
    done = run_processes(2, "train", [*two, "--ddp-backend", backend], before=TELLING, timeout=300).check()
    assert done.output.count("replayed") >= 4
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-4)
