"""Checkpoints that hold adapters alone (--lora-rank), next to the name of the checkpoint that has the other weights."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError

ENTRY = "lora_base"
"""Entry of a checkpoint: the path of the checkpoint with the other weights, absolute and relative to its folder."""


def leave_out_base(state: dict[str, Any], frozen: set[str], base: str, folder: Path) -> None:
    """Take the frozen parameters out of a state, in place.

    Args:
        state: of a whole checkpoint.
        frozen: names of the parameters that are the base's.
        base: path of the checkpoint that has them.
        folder: to which the checkpoint goes.
    """
    state["model"] = {name: value for name, value in state["model"].items() if name not in frozen}
    state[ENTRY] = {"absolute": os.path.abspath(base), "relative": os.path.relpath(base, folder)}


def join(state: dict[str, Any], path: str | Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Bring the frozen parameters back into a state; one that has them is returned as it is.

    Args:
        state: what the checkpoint holds.
        path: of the checkpoint.
        load: reads another checkpoint whole.

    Raises:
        InputError: the base is not there, or is another one.
    """
    if not isinstance(state, dict) or ENTRY not in state:
        return state
    places = [Path(state[ENTRY]["absolute"]), Path(path).parent / state[ENTRY]["relative"]]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise InputError(
            f"{path} holds adapters alone, and {places[0]}, on which they were trained, is not there; put it there, or "
            f"name it: torchscale-fairseq convert merge-lora {path} merged.pt --base FILE."
        )
    base, own = load(found)["model"], state["model"]
    for name, value in own.items():
        layer = name.rpartition(".")[0]
        weight = base.get(f"{layer}.weight")
        if name.endswith(".lora_B") and (weight is None or len(weight) != len(value)):
            raise InputError(
                f"{found} has no weight that fits {name} of {path}; put the checkpoint it was trained on back."
            )
    whole = {key: value for key, value in state.items() if key != ENTRY}
    return {**whole, "model": {**base, **own}}
