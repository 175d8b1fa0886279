"""Experts in several gloo processes when something goes wrong: all of them end, soon, and lose nothing."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.checkpoints import weights
from tests.distributed.expert_training import ADAM, SGD, SHARDED, train

SOON = 60
"""Seconds in which a job has to end; a process that waits for another would wait half an hour."""


@pytest.mark.parametrize("precision", [[], ["--fp16"]], ids=["float32", "float16"])
def test_an_infinite_gradient_in_one_process_is_seen_by_all(precision: list[str], data: Path, tmp_path: Path) -> None:
    before = """
import os
from fairseq.optim import FairseqOptimizer
reduce = FairseqOptimizer.all_reduce_grads
updates = []
def with_infinity(self, module):
    reduce(self, module)
    updates.append(1)
    if os.environ["RANK"] == "1" and len(updates) == 2:
        next(p for p in module.parameters() if hasattr(p, "expert")).grad[0, 0] = float("inf")
FairseqOptimizer.all_reduce_grads = with_infinity
"""
    done = train(2, data, tmp_path, *ADAM, *precision, updates=4, before=before, timeout=SOON)
    if precision:
        assert done.check().output.count("gradient overflow detected") == 1  # the first process says it
        assert all(value.isfinite().all() for value in weights(tmp_path).values())
    else:
        assert done.returncode == 1 and "gradients are Nan/Inf" in done.output
        assert not (tmp_path / "checkpoint_last.pt").exists()


@pytest.mark.parametrize(
    ("rank", "error"),
    [(1, "RuntimeError('CUDA out of memory')"), (1, "ValueError('a bad batch')"), (0, "ValueError('a bad batch')")],
)
def test_one_failing_process_ends_all(rank: int, error: str, data: Path, tmp_path: Path) -> None:
    before = f"""
import os
import torch.distributed as dist
exchange, calls = dist.all_to_all_single, []
def failing(*arguments, **keywords):
    calls.append(1)
    if os.environ["RANK"] == "{rank}" and len(calls) > 10:
        raise {error}
    return exchange(*arguments, **keywords)
dist.all_to_all_single = failing
"""
    done = train(2, data, tmp_path, *SGD, before=before, timeout=SOON)
    assert done.returncode == 1
    assert error.split("'")[1] in done.output


@pytest.mark.parametrize(
    ("sharded", "rank", "saving"),
    [(False, 0, 2), (True, 1, 2), (True, 0, 4)],
    ids=["merged", "shard", "file that names the shards"],
)
def test_a_killed_save_leaves_the_previous_checkpoint(
    sharded: bool, rank: int, saving: int, data: Path, tmp_path: Path
) -> None:
    """kill -9 when a file of the second checkpoint is half written."""
    before = f"""
import io, os, signal, torch
save, saves = torch.save, []
def killed(state, file, *arguments, **keywords):
    saves.append(1)
    if os.environ["RANK"] != "{rank}" or len(saves) < {saving}:
        return save(state, file, *arguments, **keywords)
    content = io.BytesIO()
    save(state, content)
    part = open(file, "wb") if isinstance(file, (str, os.PathLike)) else file
    part.write(content.getvalue()[:2000])
    part.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
"""
    flags = [*ADAM, "--save-interval-updates", "1", "--no-epoch-checkpoints", "--disable-validation"]
    flags += SHARDED if sharded else []
    assert train(2, data, tmp_path, *flags, before=before, timeout=SOON).returncode == 1
    assert list(tmp_path.rglob("*.part")), "it was killed while it wrote"
    done = train(2, data, tmp_path, *flags).check()
    assert "@ 1 updates" in done.output
    assert re.search(r"num_updates[ =:]+3", done.output)


@pytest.mark.parametrize(
    ("processes", "flags", "message"),
    [
        (2, ["--zero-sharding", "os"], "--zero-sharding os splits"),
        (1, ["--ddp-backend", "slowmo"], "--ddp-backend slowmo averages"),
        (2, ["--moe-expert-count", "3"], "--moe-expert-count (3) must divide the number of processes (2)"),
    ],
)
def test_refuses_what_would_destroy_experts(
    processes: int, flags: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    done = train(processes, data, tmp_path, *ADAM, *flags)
    assert done.returncode == 1
    assert message in done.output
