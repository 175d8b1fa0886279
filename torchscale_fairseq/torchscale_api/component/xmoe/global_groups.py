"""Which processes exchange tokens, and which hold copies of an expert."""

import functools
from typing import Any

import torch.distributed as dist


def _find_my_group_index(grouped_ranks: list[list[int]]) -> int:
    """The place of the list that has this process's rank."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return next(place for place, ranks in enumerate(grouped_ranks) if rank in ranks)


def get_moe_group(moe_expert_count: int | None = None) -> tuple[int, Any]:
    """The processes that hold copies of this process's expert: their group's index, and the group."""
    world, count = _sizes(moe_expert_count)
    if world <= count:
        return _group("moe", [[rank] for rank in range(world)])
    return _group("moe", [[rank for rank in range(world) if rank % count == i] for i in range(count)])


def get_all2all_group(moe_expert_count: int | None) -> tuple[int, Any]:
    """The processes among which tokens are exchanged: their group's index, and the group."""
    world, count = _sizes(moe_expert_count)
    if world <= count:
        return _group("all2all", [list(range(world))])
    return _group("all2all", [list(range(first, first + count)) for first in range(0, world, count)])


def _sizes(moe_expert_count: int | None) -> tuple[int, int]:
    world = dist.get_world_size() if dist.is_initialized() else 1
    return world, moe_expert_count or world


def _group(kind: str, ranks: list[list[int]]) -> tuple[int, Any]:
    place = _find_my_group_index(ranks)
    groups = _created(kind, tuple(map(tuple, ranks))) if dist.is_initialized() else [None] * len(ranks)
    return place, groups[place]


@functools.cache
def _created(kind: str, ranks: tuple[tuple[int, ...], ...]) -> list[Any]:
    return [dist.new_group(list(members)) for members in ranks]
