"""Weights that others have released, read by our names (--pretrained)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from torch import Tensor, nn

from torchscale_fairseq.checkpoints.reading import CheckpointError, read_file
from torchscale_fairseq.core.errors import InputError, joined

from ._options import ModelOptions

logger = logging.getLogger(__name__)

BRANCHES = {"teacher": "teacher.network.", "student": "student."}
"""The two networks of self-distillation: as authors' files name them, and the beginning of their names in our
checkpoints."""


@dataclass
class PretrainedOptions(ModelOptions):
    """Options of fairseq's side alone, of models that begin from released weights."""

    pretrained: Optional[str] = field(  # noqa: UP045 - fairseq reads typing's form only
        default=None,
        metadata={"help": "file of weights to start from, such as the released ones"},
    )


@dataclass
class BranchOptions(PretrainedOptions):
    """Options of models that self-distillation pre-trains."""

    pretrained_branch: str = field(
        default="teacher",
        metadata={"help": "which network of self-distillation to take from --pretrained: teacher or student"},
    )


def read_released(path: str | Path, wrappers: Sequence[str], branch: str = "teacher") -> dict[str, Tensor]:
    """Tensors by their names, without what wrappers put before these.

    Args:
        path: of the file.
        wrappers: beginnings of names to remove, in this order.
        branch: teacher or student; which of them is taken from a file that has both.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it holds no weights.
        InputError: there is no such branch.
    """
    if branch not in BRANCHES:
        raise InputError(f"--pretrained-branch ({branch}) must be {joined(list(BRANCHES), 'or')}.")
    state = read_file(path)
    entries = ("model", branch, "state_dict", "module")
    entry = next((name for name in entries if isinstance(state, Mapping) and name in state), None)
    state = state if entry is None else state[entry]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"--pretrained {path} holds no weights by name.")
    beginning, result = BRANCHES[branch], {}
    chosen = {name.removeprefix(beginning): value for name, value in state.items() if name.startswith(beginning)}
    for name, value in (chosen or state).items():
        for wrapper in wrappers:
            name = name.removeprefix(wrapper)
        result[name] = value
    return result


def begin_from(
    model: nn.Module, given: Mapping[str, Tensor], path: str | Path, *, kind: str, advice: str, body: str = "model."
) -> None:
    """Load released weights into a model.

    Args:
        model: all of its tensors under ``body`` are needed; others, such as those of a head, may be missing.
        given: the weights, by the model's names.
        path: of their file, for messages.
        kind: of model, with its article, for messages.
        advice: what to do about tensors of other shapes, likewise.
        body: the beginning of the names of what must be there.

    Raises:
        CheckpointError: the weights are those of another architecture.
    """
    own = model.state_dict()
    missing = [name for name in own if name.startswith(body) and name not in given]
    if missing:
        raise CheckpointError(f"--pretrained {path} has no {missing[0]}; it is not {kind} of this architecture.")
    state = {name: given[name] for name in own if name in given}
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"--pretrained {path} has {name} of shape {tuple(value.shape)}, and this model "
                f"{tuple(own[name].shape)}; {advice}."
            )
    model.load_state_dict(state, strict=False)
    logger.info("began from %s: %s of %s tensors", path, len(state), len(own))
    kept = [name for name in own if name not in given]
    if kept:
        logger.warning("%s tensors are not in %s and stay as initialised: %s", len(kept), path, ", ".join(kept))
    unused = [name for name in given if name not in own]
    if unused:
        logger.warning("%s tensors of %s have no place in this model: %s", len(unused), path, ", ".join(unused))
