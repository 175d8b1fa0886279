"""Several processes on the CPU: starting them, and what they exchange."""

import os
import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.distributed import short_training
from tests.distributed.process_pair import TWO_PROCESSES
from tests.fairseq_cli import (
    ENVIRONMENT,
    FEW_UPDATES,
    TINY_TRANSFORMER,
    TORCHRUN,
    USER_DIR,
    run_beside_fairseq,
    run_fairseq,
    run_program,
    tiny_language_data,
)
from torchscale_fairseq.checkpoints.reading import load_checkpoint

CHECKS = {
    "broadcast": (
        """
def check():
    from argparse import Namespace
    from omegaconf import DictConfig, OmegaConf
    sent = {
        "cfg": OmegaConf.create({"model": Namespace(arch="x"), "lr": [0.1]}, flags={"allow_objects": True}),
        "model": {"weight": torch.arange(3)}, "shape": (torch.Size([2]), torch.float16),
    }
    received = distributed_utils.broadcast_object(sent if rank == 0 else None, 0, group, torch.device("cpu"))
    assert isinstance(received["cfg"], DictConfig) and received["cfg"].lr == [0.1]
    assert received["cfg"].model.arch == "x"
    assert received["model"]["weight"].tolist() == [0, 1, 2] and received["shape"] == sent["shape"]
""",
        "argparse.Namespace|omegaconf",
    ),
    "gather": (
        """
def check():
    gathered = distributed_utils.all_gather_list({"rank": rank, "name": "x"}, group)
    assert gathered == [{"rank": 0, "name": "x"}, {"rank": 1, "name": "x"}]
""",
        "CUDA|cuda|NVIDIA",
    ),
    "pytorch_ddp": (
        """
def check():
    from fairseq.dataclass.configs import DistributedTrainingConfig
    from fairseq.models import DistributedFairseqModel
    model = torch.nn.Linear(2, 1, bias=False)
    config = DistributedTrainingConfig(tpu=False)
    wrapped = DistributedFairseqModel(config, model, group, torch.device("cpu"))
    wrapped(torch.full((1, 2), float(rank))).sum().backward()
    assert model.weight.grad.tolist() == [[0.5, 0.5]]
""",
        "device_ids",
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes_exchange(name: str) -> None:
    code, failure = CHECKS[name]
    done = run_beside_fairseq(code + TWO_PROCESSES, plugin=True).check()
    assert "rank 0 passed" in done.stdout and "rank 1 passed" in done.stdout
    stock = run_beside_fairseq(code + TWO_PROCESSES, plugin=False)
    if stock.returncode == 0:
        pytest.skip("stock fairseq is sound here")
    assert any(word in stock.stderr for word in failure.split("|")), stock.stderr


@pytest.fixture(scope="module")
def train(translation_data: Path) -> list[str]:
    return [str(translation_data), *TINY_TRANSFORMER, *FEW_UPDATES]


def test_stock_starts_no_processes_on_cpu(train: list[str], tmp_path: Path) -> None:
    """Why the repair: refused, divided by zero, or no process at all and yet success."""
    arguments = [*train, "--distributed-world-size", "2", "--save-dir", tmp_path]
    assert "available devices" in run_fairseq("train", arguments, plugin=False).last_line
    torchrun = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "0"}
    divided = run_fairseq("train", arguments, plugin=False, environment=torchrun)
    with_address = [*arguments, "--distributed-init-method", "tcp://localhost:1"]
    silent = run_fairseq("train", with_address, plugin=False)
    if divided.returncode:  # 0.12.2 does not divide
        assert "ZeroDivisionError" in divided.last_line
    assert silent.returncode == 0 and "num_updates" not in silent.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoint_last.pt")["model"]


def test_two_processes_resume_like_one(train: list[str], tmp_path: Path) -> None:
    """torchrun, which is not told the world size again, resumes a checkpoint of one process, and learns what that
    process learns when it accumulates two batches per update. Dropout is off."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_fairseq("train", [*train, "--update-freq", "2", "--save-dir", one]).check()
    shutil.copytree(one, two)
    run_fairseq("train", [*train, "--update-freq", "2", "--save-dir", one, "--max-update", "8"]).check()
    together = [*train, "--save-dir", two, "--max-update", "8", "--user-dir", USER_DIR]
    torchrun = [*TORCHRUN, "--nproc_per_node", "2", "--master_port", str(free_port()), "--no-python", "fairseq-train"]
    resumed = run_program([*torchrun, *together]).check()
    assert "Loaded checkpoint" in resumed.output and "training on 2 devices" in resumed.output
    compare(weights(one), weights(two))


def test_workers_import_nothing_anew(train: list[str], tmp_path: Path) -> None:
    """fairseq-train starts two processes, and neither starts an interpreter for the worker of its loader."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif '--multiprocessing-fork' in sys.orig_argv: print('an interpreter')"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]]), "PYTHONUNBUFFERED": "1"}
    words = [*train, "--num-workers", "1", "--max-update", "2", "--no-save", "--cpu"]
    words += ["--distributed-world-size", "2", "--disable-validation", "--user-dir", str(USER_DIR)]
    done = run_program(["fairseq-train", *words], environment=environment).check()
    assert "training on 2 devices" in done.output
    assert done.stdout.count("an interpreter") == 2


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(["fairseq-train"], marks=pytest.mark.slow),
        [sys.executable, "-m", "fairseq_cli.train"],
        pytest.param([sys.executable, find_spec("fairseq_cli.train").origin], marks=pytest.mark.slow),
    ],
    ids=["script", "module", "file"],
)
def test_processes_of_a_command_train_with_this_package(program: list[str], tmp_path: Path) -> None:
    """In processes that fairseq-train starts, the module of the program has another name, and two namespaces. The
    Trainer is replaced in all of them, and functions of the command."""
    words = [*short_training.words(tiny_language_data(tmp_path), tmp_path), "--max-update", "2", "--disable-validation"]
    words += ["--distributed-world-size", "2", "--user-dir", USER_DIR]
    lines = [line for line in run_program([*program, *words]).check().output.splitlines() if "train_inner" in line]
    assert len(lines) == 2
    assert all("tps_device" in line for line in lines), lines
    assert "--max-update (2) is reached after 2 updates" in run_program([*program, *words]).check().output


@pytest.mark.slow
def test_a_profiled_command_trains_with_this_package(tmp_path: Path) -> None:
    """The program is the profiler, and no module has the command's names."""
    words = [*short_training.words(tiny_language_data(tmp_path), tmp_path), "--max-update", "1", "--no-save"]
    profiler = [sys.executable, "-m", "cProfile", "-o", tmp_path / "profile", "-m", "fairseq_cli.train"]
    done = run_program([*profiler, *words, "--disable-validation", "--user-dir", USER_DIR]).check()
    assert "tps_device" in done.output


def compare(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-5, msg=name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_peers_come_from_slurm_or_torchrun(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho node1\n")
    scontrol.chmod(0o755)
    code = f"""
        import os
        os.environ.update(SLURM_STEP_NODELIST="node1", SLURM_NNODES="1", SLURM_NTASKS_PER_NODE="2")
        os.environ.update(SLURM_PROCID="1", SLURM_LOCALID="1", PATH="{tmp_path}:" + os.environ["PATH"])
        from fairseq.dataclass.configs import DistributedTrainingConfig
        from torchscale_fairseq.hooks.runs.launch import find_peers
        for port in (29500, -1):
            found = DistributedTrainingConfig(distributed_world_size=2, distributed_port=port)
            find_peers(found)
            print(found.distributed_init_method, found.distributed_rank, found.distributed_no_spawn)
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="1", WORLD_SIZE="3", RANK="2")
        found = DistributedTrainingConfig(distributed_world_size=2)
        find_peers(found)
        print(found.distributed_init_method, found.distributed_rank, found.distributed_world_size)
    """
    slurm, alone, torchrun = run_beside_fairseq(code, plugin=True).check().stdout.splitlines()[-3:]
    assert slurm == "tcp://node1:29500 1 True"
    assert alone.startswith("tcp://127.0.0.1:") and alone.endswith("0 False")
    assert torchrun == "env:// 2 3"
