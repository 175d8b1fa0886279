"""Slots of dilated attention: each kept token has one in each branch, and tiles cover them."""

import pytest
import torch

from torchscale_fairseq.core.ops.dilated import AllBranchesAtOnce, DilatedRequest
from torchscale_fairseq.core.ops.dilated_parts import Settings
from torchscale_fairseq.core.ops.dilated_pattern import Branch
from torchscale_fairseq.core.ops.dilated_slots import ALIGNMENT, Slots, tiles

BRANCHES = ((8, 1), (20, 3), (64, 7))


def places(slots: Slots, block: int, offset: int) -> list[tuple[int, int]]:
    """Token and slot of each row of each tile, for a head that keeps this offset where a ratio is larger."""
    found = []
    for start, segment, ratio, first, slot in tiles(slots, block, torch.device("cpu"), last_first=True).tolist():
        kept = range(start + offset % ratio, min(start + segment, slots.length), ratio)
        found += [(kept[row], slot + row) for row in range(first, min(first + block, len(kept)))]
    return found


@pytest.mark.parametrize("length", [1, 8, 63, 200])
@pytest.mark.parametrize("offset", [0, 1, 6])
def test_each_kept_token_has_a_slot(length: int, offset: int) -> None:
    """By definition: the branches that keep a token are those where its place in the segment leaves the offset."""
    slots = Slots(BRANCHES, length)
    found = places(slots, 4, offset)
    branches = [(min(w, length), r) for w, r in BRANCHES]
    expected = [t for w, r in branches for t in range(length) if t % w % r == offset % r]
    assert sorted(token for token, _ in found) == sorted(expected)
    assert len({slot for _, slot in found}) == len(found)
    assert all(0 <= slot < slots.total for _, slot in found)


def test_segments_begin_at_aligned_slots() -> None:
    table = tiles(Slots(BRANCHES, 200), 4, torch.device("cpu"), last_first=False)
    assert not (table[:, 4] % ALIGNMENT).any()


def test_the_kernels_refuse_a_cpu() -> None:
    x = torch.zeros(1, 4, 1, 8)
    request = DilatedRequest(x, x, x, [Branch(4, 1)], True, None, Settings(1.0))
    refusal = AllBranchesAtOnce().refusal(request)
    assert refusal is not None and "on a GPU" in refusal
    assert "dropout" in str(AllBranchesAtOnce().refusal(request._replace(settings=Settings(1.0, 0.1))))
