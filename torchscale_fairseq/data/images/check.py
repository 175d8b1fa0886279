"""Which image files cannot be read: found before training begins, and remembered."""

import functools
import json
import logging
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from torchscale_fairseq.core.files import WriteError, make_directory, write_atomically
from torchscale_fairseq.data.images.reading import errors_named, open_image
from torchscale_fairseq.data.images.stored import ImageFile
from torchscale_fairseq.data.problems import DataError, Problems

logger = logging.getLogger(__name__)

MOST_PROCESSES = 16
AT_ONCE = 16
"""Images that a process is given at a time."""

Results = dict[str, tuple[int, int, str]]
"""By file name: the size in bytes, the time of the last change in nanoseconds, and the reason why the file cannot be
read, or an empty text."""


def readable_images(
    images: Sequence[ImageFile], img_size: int, data: Path, split: str, problems: Problems
) -> list[int]:
    """The places of the images that can be read, in their order.

    Each file is decoded once, as training will decode it. ``DATA/index/SPLIT.images.IMG_SIZE.json`` remembers the
    results, so that a file is read again only when it has changed. Processes that train together divide the files.

    Args:
        images: of the split.
        img_size: pixels of a side.
        data: the data directory.
        split: such as "train".
        problems: takes the images that cannot be read.

    Raises:
        DataError: an image cannot be read, and problems are not skipped; or no image can be.
    """
    memory = data / "index" / f"{split}.images.{img_size}.json"
    names = [os.path.relpath(image, data) for image in images]
    reasons = _check(dict(zip(names, images, strict=True)), img_size, memory)
    unreadable = [reasons[name] for name in dict.fromkeys(names) if reasons[name]]
    if unreadable:
        for reason in unreadable if problems.skip else ():
            logger.warning("%s: left out: %s", split, reason)
        problems.found("unreadable images", unreadable[0].removesuffix("."), len(unreadable))
    if len(unreadable) == len(set(names)):
        raise DataError(f"none of the {len(unreadable)} images of {data / split} can be read.")
    return [place for place, name in enumerate(names) if not reasons[name]]


def _check(files: Mapping[str, ImageFile], img_size: int, memory: Path) -> dict[str, str]:
    """Why each file cannot be read, or an empty text. All processes get the same answer."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    own = {name: file for name, file in files.items() if zlib.crc32(name.encode()) % processes == rank}
    states = {name: _state(file) for name, file in own.items()}
    known = _remembered(memory)
    new = [name for name in own if tuple(known.get(name, ())[:2]) != states[name]]
    found = dict(zip(new, _reasons([own[name] for name in new], img_size), strict=True))
    results: Results = {name: (*states[name], found[name] if name in found else known[name][2]) for name in own}
    changed = bool(new)
    if processes > 1:
        everyone: list[Any] = [None] * processes
        dist.all_gather_object(everyone, (results, changed))
        results = {name: result for part, _ in everyone for name, result in part.items()}
        changed = any(part for _, part in everyone)
    if changed and rank == 0:
        _remember(results, memory)
    return {name: reason for name, (*_, reason) in results.items()}


def _state(file: ImageFile) -> tuple[int, int]:
    try:
        state = file.stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _reasons(files: Sequence[ImageFile], img_size: int) -> list[str]:
    """Computed in processes of their own, unless this one has used libvips already.

    libvips hangs in a process that is forked from one that has used it; a data loader's workers may be such processes.
    """
    if not files:
        return []
    logger.info("checking %s images", f"{len(files):,}")
    why = functools.partial(_why_unreadable, img_size)
    if "pyvips" in sys.modules:
        return [why(file) for file in files]
    processes = min(os.cpu_count() or 1, MOST_PROCESSES, -(-len(files) // AT_ONCE))
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(why, files, chunksize=AT_ONCE))


def _why_unreadable(img_size: int, file: ImageFile) -> str:
    try:
        with errors_named(file):
            open_image(file, img_size).avg()
    except DataError as error:
        return str(error)
    return ""


def _remembered(memory: Path) -> Results:
    try:
        content: Results = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return content


def _remember(results: Results, memory: Path) -> None:
    try:
        make_directory(memory.parent)
        with write_atomically(memory, several_writers=True) as scratch:
            scratch.write_text(json.dumps(results))
    except WriteError as error:
        logger.info("images will be checked again next time: %s", error)
