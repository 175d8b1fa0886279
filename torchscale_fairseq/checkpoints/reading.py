"""Reading fairseq's checkpoints safely, and saying plainly what is wrong with one."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import numpy.dtypes
import torch

from torchscale_fairseq.checkpoints import adapters, distributed
from torchscale_fairseq.checkpoints import shards as expert_shards
from torchscale_fairseq.core.errors import InputError

__all__ = ["CheckpointError", "allow_stock_types", "describe_mismatch", "explain", "load_checkpoint"]

UNREADABLE = (EOFError, OSError, RuntimeError, pickle.UnpicklingError)
"""Exceptions of ``torch.load`` for a file that is no checkpoint, is truncated, or cannot be opened."""


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message names the file and the reason."""


def _numpy_types() -> list[Any]:
    """numpy's arrays and scalars of bools and numbers, which validation metrics such as BLEU leave in a
    checkpoint, under the module names of numpy 1 and numpy 2."""
    multiarray = numpy.array(0).__reduce__()[0].__module__
    rebuild, scalar = numpy.array(0).__reduce__()[0], numpy.float64(0).__reduce__()[0]
    packages = {multiarray, "numpy.core.multiarray", "numpy._core.multiarray"}
    functions = [
        (function, f"{package}.{name}")
        for package in sorted(packages)
        for function, name in ((rebuild, "_reconstruct"), (scalar, "scalar"))
    ]
    numbers = [numpy.dtypes.BoolDType, *(type(numpy.dtype(code)) for code in "bBhHiIlLqQefd")]
    return [numpy.ndarray, numpy.dtype, *functions, *numbers]


SAFE_TYPES: tuple[Any, ...] = (argparse.Namespace, *_numpy_types())
"""Types that fairseq writes into checkpoints in addition to tensors and plain containers. None of them can run code."""


def allow_stock_types(*more: Any) -> None:
    """Let ``torch.load`` read :data:`SAFE_TYPES` and ``more`` under ``weights_only=True``, process-wide."""
    torch.serialization.add_safe_globals([*SAFE_TYPES, *more])


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, by ``weights_only=True``. Does not need fairseq.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, not a checkpoint, or holds types that are not loaded safely.
    """
    state = read_file(path)
    if not isinstance(state, dict) or "model" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of fairseq: it has no entry 'model'")
    return complete(state, path)


@dataclass(frozen=True)
class Parts:
    """The parts that a process needs of a checkpoint with other files next to it. By default all of them."""

    experts: range | None = None
    """None for all."""
    load: distributed.Loader | None = None
    """Gets the tensors of a sharded checkpoint; None: whole ones."""


EVERYTHING = Parts()


def complete(state: dict[str, Any], path: str | Path, parts: Parts = EVERYTHING) -> dict[str, Any]:
    """Bring back into a state what its checkpoint has in other files.

    Args:
        state: what the checkpoint holds.
        path: of the checkpoint.
        parts: what is needed.
    """
    state = distributed.join(expert_shards.join(state, path, read_mapped, parts.experts), path, parts.load)
    return adapters.join(state, path, lambda base: complete(read_mapped(base), base))


def read_mapped(path: str | Path) -> Any:
    """Read a checkpoint like ``read_file``, but each tensor when it is first used. The file must not be written to
    until then."""
    return read_file(path, mapped=_is_zip(path))


def read_file(path: str | Path, *, mapped: bool = False) -> Any:
    """Read a file of ``torch.save`` to the CPU, with ``weights_only=True``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read.
    """
    allowed = torch.serialization.get_safe_globals()
    try:
        # the context takes what it was given off the list, so that it must not be given what is on it already
        with torch.serialization.safe_globals([kind for kind in SAFE_TYPES if kind not in allowed]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UNREADABLE as error:
        raise explain(path, error) from None


def _is_zip(path: str | Path) -> bool:
    """Whether the file has torch's format since 1.6, which can be mapped."""
    return Path(path).is_file() and zipfile.is_zipfile(path)


def explain(path: str | Path, error: Exception) -> Exception:
    """The error to raise where reading ``path`` failed with ``error``, one of :data:`UNREADABLE`."""
    if isinstance(error, OSError) and error.filename is not None:
        return error  # no such file, no permission: says so itself
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return CheckpointError(
            f"{path} holds an object of type {forbidden[1]}, which is not among the types loaded safely; if you "
            "trust the file, allow the type with torch.serialization.add_safe_globals in your --user-dir"
        )
    return CheckpointError(
        f"{path} is truncated or not a checkpoint ({Path(path).stat().st_size:,} bytes); remove it or name "
        "another one, such as checkpoint_best.pt"
    )


def describe_mismatch(path: str | Path, model: torch.nn.Module, options: Any) -> str | None:
    """Why the checkpoint's parameters do not fit ``model``, built from ``options`` (``cfg.model``); None if
    they do."""
    state = load_checkpoint(path)
    there = {name: tuple(value.shape) for name, value in state["model"].items() if torch.is_tensor(value)}
    here = {name: tuple(value.shape) for name, value in model.state_dict().items() if torch.is_tensor(value)}
    differences = _differences(there, here)
    if not differences:
        return None
    config = state.get("cfg") or {}
    trained, built = _architecture(config.get("model") or state.get("args")), _architecture(options)
    other = ", with other options or another dictionary" if trained == built else ""
    return (
        f"checkpoint {path} was trained with --arch {trained}; this run builds --arch {built}{other}: "
        f"{'; '.join(differences)}. Use the architecture, options and dictionary it was trained with, or another "
        "--save-dir or --restore-file"
    )


def _architecture(options: Any) -> str:
    """The architecture's name in a model's options: a mapping, or the namespace of an argparse model."""
    if options is None:
        return "(not recorded)"
    values = options if isinstance(options, Mapping) else vars(options)
    return str(values.get("_name") or values.get("arch"))


def _differences(there: dict[str, tuple[int, ...]], here: dict[str, tuple[int, ...]]) -> list[str]:
    """Clauses on the parameters that only one side has, and on those whose shapes differ."""
    clauses = []
    for names, where in (
        ([name for name in there if name not in here], "in the checkpoint"),
        ([name for name in here if name not in there], "in this model"),
    ):
        if names:
            clauses.append(f"{len(names)} parameters are only {where}, such as {names[0]}")
    shapes = [name for name in there if name in here and there[name] != here[name]]
    if shapes:
        name = shapes[0]
        clauses.append(
            f"{len(shapes)} have another shape, such as {name}, {there[name]} in the checkpoint and {here[name]} here"
        )
    return clauses
