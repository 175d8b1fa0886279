"""Two gloo processes train what one process with twice the batches an update trains."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import TORCHRUN, USER_DIR, run_program
from tests.plugin.shrunk import shrunk
from tests.plugin.translation_models import ARCH, COMMON, train

UPDATES = ["--max-update", "6", "--optimizer", "sgd", "--lr", "0.1", "--label-smoothing", "0.1"]
UPDATES += ["--criterion", "label_smoothed_cross_entropy", "--batch-size", "8"]


@pytest.fixture(scope="module")
def one_process(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(data, folder, *UPDATES, "--update-freq", "2").check()
    return folder


@pytest.mark.parametrize(
    ("launcher", "backend"),
    [
        ("world_size", "legacy_ddp"),
        pytest.param("torchrun", "pytorch_ddp", marks=pytest.mark.slow),
        pytest.param("torchrun", "legacy_ddp", marks=pytest.mark.slow),
        pytest.param("world_size", "pytorch_ddp", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(launcher: str, backend: str, data: Path, one_process: Path, tmp_path: Path) -> None:
    command = str(Path(sys.executable).parent / "fairseq-train")
    arguments = [data, "--user-dir", USER_DIR, *shrunk(ARCH), *COMMON, "--dropout", "0", *UPDATES]
    arguments += ["--save-dir", tmp_path, "--ddp-backend", backend]
    if launcher == "torchrun":
        result = run_program([*TORCHRUN, "--standalone", "--nproc_per_node", "2", command, *arguments])
    else:
        result = run_program([command, *arguments, "--distributed-world-size", "2"])
    result.check()
    assert_same_weights(one_process, tmp_path, 1e-5)
