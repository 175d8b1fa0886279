"""Refuses ``--path`` where it names no checkpoint, before a command of generation or evaluation reads data."""

import os
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, utils
from fairseq.file_io import PathManager

from torchscale_fairseq.core.errors import InputError

SEVERAL = ("generate", "interactive")
"""Commands whose ``--path`` may name several checkpoints, separated by colons."""


def check_paths(cfg: Any, command: str) -> None:
    """Refuse ``--path`` that is missing, or names a file that does not exist or a folder; ``--lm-path`` likewise.

    Args:
        cfg: the command's configuration.
        command: "generate", "interactive", "validate" or "eval_lm".

    Raises:
        InputError: with the option, the path and checkpoints that are nearby.
    """
    given = cfg.common_eval.path
    if not given:
        raise InputError(
            f"--path is missing: give the checkpoint that fairseq-{command.replace('_', '-')} reads, such as --path "
            "checkpoints/checkpoint_best.pt"
        )
    for path in utils.split_paths(given) if command in SEVERAL else [given]:
        _check_path("--path", path, cfg.checkpoint)
    if command in SEVERAL and cfg.generation.lm_path is not None:
        _check_path("--lm-path", cfg.generation.lm_path)


def _check_path(option: str, path: str, shards: Any = None) -> None:
    if os.path.isdir(path):
        raise InputError(f"{option} {path} is a folder: {_instead(Path(path))}")
    parts = (shards.checkpoint_suffix, 0, shards.checkpoint_shard_count) if shards else ("", 0, 1)
    if not PathManager.exists(checkpoint_utils.get_maybe_sharded_checkpoint_filename(path, *parts)):
        raise InputError(f"{option} {path} does not exist: {_instead(Path(path).parent)}")


def _instead(folder: Path) -> str:
    """A clause on the checkpoint to give: the best one in a folder, else the last one, else any."""
    there = sorted(
        folder.glob("*.pt"), key=lambda file: (file.stem != "checkpoint_best", file.stem != "checkpoint_last")
    )
    if there:
        return f"give a checkpoint file, such as {there[0]}"
    return (
        f"{folder} has no checkpoint; give a file that fairseq-train wrote to its --save-dir, checkpoint_best.pt, say"
    )
