"""Rows of tokens on their way to experts in other processes."""

import pytest

pytest.importorskip("fairseq")

from tests.fairseq_cli import run_gloo


def test_a_layer_learns_in_one_read_how_many_rows_go_where() -> None:
    code = """
import torch
import torch.distributed as dist
from tests.distributed.reads import Reads
from torchscale_fairseq.core.parallel.dispatch import AllToAllDispatcher
from torchscale_fairseq.core.parallel.groups import ExpertSplit

rank = dist.get_rank()
load = torch.tensor([[1, 2, 0, 3], [0, 0, 4, 1]][rank])
rows = torch.repeat_interleave(torch.arange(4), load).float().unsqueeze(1)
dispatcher = AllToAllDispatcher(ExpertSplit(4, rank=rank, size=2))
with Reads([rows, load]) as reads:
    dispatched = dispatcher.dispatch(rows, load)
    sizes = dispatched.segments.sizes
    back = dispatcher.collect(dispatched.rows, dispatched)
assert len(reads.found) == 1, reads.found
assert sizes == [[1, 2], [4, 4]][rank]
assert dispatched.rows.flatten().tolist() == [[0, 1, 1], [2] * 4 + [3] * 4][rank]
assert torch.equal(back, rows)
"""
    run_gloo(2, code).check()
