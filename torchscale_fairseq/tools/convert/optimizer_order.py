"""Optimizer states, whose entries are counted in the order of the model's parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class UnknownLayout(Exception):
    """A deviation of an optimizer's state from the expected one."""


def reordered(optimizer: Mapping[str, Any], sizes: Mapping[str, int], order: Sequence[str]) -> dict[str, Any]:
    """The state for the same parameters in another order.

    Args:
        optimizer: state dict of one parameter group: an entry per parameter, or one for all of them in a row, as
            fairseq's --fp16 makes it.
        sizes: elements of each parameter, in the present order.
        order: the names in the new order.

    Raises:
        UnknownLayout: it is neither.
    """
    groups = optimizer["param_groups"]
    if len(groups) != 1:
        raise UnknownLayout(f"it has {len(groups)} groups of parameters")
    count = len(groups[0]["params"])
    if count == len(sizes):
        old = {name: index for index, name in enumerate(sizes)}
        there = optimizer["state"]
        entries = {new: there[old[name]] for new, name in enumerate(order) if old[name] in there}
    elif count == 1:
        entries = {index: _flat_reordered(entry, sizes, order) for index, entry in optimizer["state"].items()}
    else:
        raise UnknownLayout(f"it is of {count} parameters, and the model has {len(sizes)}")
    return {**optimizer, "state": entries}


def _flat_reordered(entry: Mapping[str, Any], sizes: Mapping[str, int], order: Sequence[str]) -> dict[str, Any]:
    total = sum(sizes.values())
    result = dict(entry)
    for key, value in entry.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            if value.shape != (total,):
                raise UnknownLayout(
                    f"its {key} has shape {tuple(value.shape)}, and the model {total} parameters in all"
                )
            pieces = dict(zip(sizes, value.split(list(sizes.values())), strict=True))
            result[key] = torch.cat([pieces[name] for name in order])
    return result
