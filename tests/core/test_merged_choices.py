"""Choices of several processes, as the holder of some experts sees them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchscale_fairseq.core.ops.merged_choices import merge_choices
from torchscale_fairseq.core.ops.routing import route


@settings(max_examples=60, deadline=None)
@given(
    processes=st.integers(1, 4),
    tokens=st.integers(1, 12),
    experts=st.integers(1, 6),
    k=st.integers(1, 3),
    capacity=st.one_of(st.none(), st.integers(1, 6)),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_kept_choice_has_a_row_at_its_expert(
    processes: int, tokens: int, experts: int, k: int, capacity: int | None, padded: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    k = min(k, experts)
    routings = [
        route(
            torch.randn(tokens, experts),
            top_k=k,
            capacity=capacity,
            padding=torch.rand(tokens) < 0.4 if padded else None,
        )
        for _ in range(processes)
    ]
    gate, expert, kept = (torch.cat([getattr(r, name) for r in routings]) for name in ("gate", "expert", "kept"))
    row, load = torch.stack([r.row for r in routings]), torch.stack([r.load.int() for r in routings])
    first = seed % experts
    last = first + 1 + seed // experts % (experts - first)
    merged = merge_choices(row, load, gate, range(first, last), most=kept.numel())
    mine = kept & (expert >= first) & (expert < last)
    assert (merged.row >= 0).equal(mine)
    assert merged.load.equal(torch.bincount(expert[mine] - first, minlength=last - first))
    token, choice = mine.nonzero().unbind(1)
    order = merged.row[mine].argsort()
    assert merged.row[mine][order].equal(torch.arange(len(order), dtype=torch.int32)), "one row each"
    assert expert[token, choice][order].equal(torch.repeat_interleave(torch.arange(first, last), merged.load))
    assert merged.token.equal(token[order]) and merged.weight.equal(gate[token, choice][order])
