"""Sequences that two GPUs share, over NCCL."""

import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import TORCHRUN, USER_DIR, run_fairseq, run_program, tiny_language_data

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]
TWO = [*TORCHRUN, "--standalone", "--nproc_per_node", "2"]
GPUS = {"CUDA_VISIBLE_DEVICES": "0,1"}
TRAIN = ["--task", "language_modeling", "--arch", "longnet_small", "--tokens-per-sample", "120", "--batch-size", "2"]
TRAIN += ["--segment-length", "[8,64,256]", "--dilated-ratio", "[1,2,3]", "--dropout", "0", "--num-workers", "0"]
TRAIN += ["--optimizer", "sgd", "--lr", "0.1", "--clip-norm", "0.5", "--max-update", "3", "--no-epoch-checkpoints"]
TRAIN += ["--required-batch-size-multiple", "1"]


def test_slices_equal_one_process() -> None:
    done = run_program([*TWO, "-m", "tests.distributed.slices"], environment=GPUS, timeout=400).check()
    assert done.stdout.count("passed") == 2


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_training_equals_one_process(backend: str, tmp_path: Path) -> None:
    pytest.importorskip("fairseq")
    command = str(Path(sys.executable).parent / "fairseq-train")
    arguments = [tiny_language_data(tmp_path), *TRAIN, "--ddp-backend", backend]
    one = [*arguments, "--save-dir", tmp_path / "one"]
    run_fairseq("train", one, environment={"CUDA_VISIBLE_DEVICES": "0"}).check()
    for precision in ([], ["--bf16"]):
        folder = tmp_path / "".join(("two", *precision))
        shared = [*arguments, "--user-dir", USER_DIR, "--seq-parallel", "--save-dir", folder, *precision]
        run_program([*TWO, command, *shared], environment=GPUS).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)
