"""Repairs of how stock fairseq writes checkpoints: whole or not at all, also where the disk is full."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import file_io

from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.files import WriteError, write_atomically


def replace_checkpoints_whole(stock: Callable[..., Any]) -> Callable[..., Any]:
    """checkpoint_last.pt and checkpoint_best.pt are copied over their predecessors in place: a run that is killed
    meanwhile leaves neither the old one nor the new. Now the copy is complete before it takes the name."""

    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        if not overwrite or not file_io.PathManager.supports_rename(dst_path):
            return stock(src_path, dst_path, overwrite)
        with write_atomically(dst_path, size_bytes=os.path.getsize(src_path)) as scratch:
            return stock(src_path, str(scratch), overwrite)

    return copy


def write_checkpoints_whole(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Where the disk is full, training logs a traceback three times and ends with ``OSError: [Errno 28]``, which names
    no file, and leaves part of a checkpoint in checkpoint….pt.tmp. Now that part is removed."""

    def torch_persistent_save(obj: Any, filename: str, async_write: bool = False) -> Any:
        if async_write or not file_io.PathManager.supports_rename(filename):
            return stock(obj, filename, async_write)
        return write_checkpoint(obj, filename)

    return torch_persistent_save


def name_what_is_left(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``checkpoint_utils.save_checkpoint`` whose error of a full disk names the newest checkpoint that is whole, next
    to the file that was to be written and the room that it needs."""

    def save_checkpoint(cfg: Any, *arguments: Any) -> Any:
        try:
            return stock(cfg, *arguments)
        except WriteError as error:
            raise WriteError(f"{error} {what_is_left(Path(cfg.save_dir))}") from error

    return save_checkpoint


def what_is_left(folder: Path) -> str:
    """A sentence on the newest checkpoint in a folder."""
    checkpoints = sorted(folder.glob("checkpoint*.pt"), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        return "No checkpoint was written before."
    newest = checkpoints[-1]
    if newest.name.startswith("checkpoint_last"):
        return f"{newest} is whole, and the same command resumes from it."
    return f"{newest} is whole; --restore-file {newest} resumes from it."
