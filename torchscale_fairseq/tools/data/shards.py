"""Shards of text for --task pretraining, written in parallel, read back, and indexed."""

import argparse
import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text.corpus import index_path
from torchscale_fairseq.data.text.index import split_line, unit_text
from torchscale_fairseq.data.text.pieces import PieceEncoder
from torchscale_fairseq.tools.data.preparation import MODEL_FILE
from torchscale_fairseq.tools.data.splits import SPLITS

DOCUMENT_WITHIN = 1 << 20
"""Bytes in which a shard looks for the end of a document; it ends with a line otherwise."""
LINES_AT_ONCE = 1000


@dataclass(frozen=True)
class Stretch:
    """A stretch of a file of raw text, approximately between two bytes."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """A shard to be written."""

    shard: Path
    stretches: tuple[Stretch, ...]

    @property
    def size(self) -> int:
        """Bytes to be read."""
        return sum(stretch.stop - stretch.start for stretch in self.stretches)


@dataclass(frozen=True)
class Written:
    """The result of a job."""

    lines: int = 0
    documents: int = 0
    tokens: int = 0
    skipped: int = 0
    first_skipped: str = ""

    def __add__(self, other: "Written") -> "Written":
        return Written(
            self.lines + other.lines,
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.skipped + other.skipped,
            self.first_skipped or other.first_skipped,
        )


def shard(options: argparse.Namespace) -> None:
    """Write the shards of all splits that are given.

    Args:
        options: of the subcommand shard-corpus.

    Raises:
        InputError: the text or the tokenizer cannot be used.
    """
    model = options.output / MODEL_FILE
    PieceEncoder(model)
    for split in SPLITS:
        if paths := getattr(options, split):
            shards = [job.shard for job in write_split(split, paths, model, options)]
            filled = [shard for shard in shards if shard.stat().st_size]
            if not filled:
                shutil.rmtree(shards[0].parent)
                raise InputError(f"--{split} {' '.join(map(str, paths))}: no line has text")
            add_source(split, filled, options)


def write_split(split: str, paths: Sequence[Path], model: Path, options: argparse.Namespace) -> list[Job]:
    """Write the shards that are not there yet."""
    folder = options.output / "shard" / split / options.name
    jobs = plan(paths, folder, options.shard_size * 1_000_000)
    remember_plan(folder / "plan.json", jobs)
    pieces = PieceEncoder(model)
    missing = [job for job in jobs if not is_written(job, pieces, options)]
    total = Written()
    with (
        tqdm(total=sum(job.size for job in missing), unit="B", unit_scale=True, desc=split, disable=None) as bar,
        ProcessPoolExecutor(min(options.workers, max(1, len(missing)))) as pool,
    ):
        running = {pool.submit(write_shard, job, model, options): job for job in missing}
        try:
            for done in as_completed(running):
                total += done.result()
                bar.update(running[done].size)
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    there = f", {len(jobs) - len(missing)} were there already" if len(missing) < len(jobs) else ""
    print(
        f"{split}: wrote {len(missing)} shards to {folder}{there}: {total.documents:,} documents, "
        f"{total.lines:,} lines, {total.tokens:,} tokens"
    )
    if total.skipped:
        print(f"{split}: left out {total.skipped:,} invalid lines, the first: {total.first_skipped}")
    return jobs


def plan(paths: Sequence[Path], folder: Path, shard_bytes: int) -> list[Job]:
    """Divide the text into shards, from the sizes of the files alone."""
    jobs, stretches, room = [], [], shard_bytes
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        start = 0
        while start < size:
            stop = min(size, start + room)
            stretches.append(Stretch(path.absolute(), start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                jobs.append(tuple(stretches))
                stretches, room = [], shard_bytes
    if stretches:
        jobs.append(tuple(stretches))
    if not jobs:
        raise InputError(f"{', '.join(map(str, paths))}: no text")
    return [Job(folder / f"{number:05}.txt", chosen) for number, chosen in enumerate(jobs)]


def remember_plan(path: Path, jobs: Sequence[Job]) -> None:
    """Refuse to resume with shards that were begun from other text."""
    content = [
        {
            "shard": job.shard.name,
            "text": [[str(s.path), s.start, s.stop, s.path.stat().st_mtime_ns] for s in job.stretches],
        }
        for job in jobs
    ]
    if path.exists():
        if json.loads(path.read_text()) != content:
            raise InputError(
                f"{path.parent} was begun from other files, or with another --shard-size; remove it, or give another "
                "--name"
            )
        return
    make_directory(path.parent)
    with write_atomically(path) as scratch:
        scratch.write_text(json.dumps(content))


def is_written(job: Job, pieces: PieceEncoder, options: argparse.Namespace) -> bool:
    return job.shard.exists() and index_path(options.output, job.shard, pieces, None).is_current()


@functools.cache
def tokenizer(model: Path) -> PieceEncoder:
    """The tokenizer in a file, which a worker process loads once."""
    return PieceEncoder(model)


def write_shard(job: Job, model: Path, options: argparse.Namespace) -> Written:
    """Write a shard, read it back, and index it."""
    pieces = tokenizer(model)
    skipped: list[str] = []
    text = b"\n".join(document_lines(job, skipped, skips=options.skip_invalid))
    text += b"\n" if text else b""
    lines = text.split(b"\n")[:-1]
    if not options.lossy:
        check_round_trip(job, lines, pieces)
    with write_atomically(job.shard) as scratch:
        scratch.write_bytes(text)
        if scratch.read_bytes() != text:
            raise DataError(f"{scratch} does not read back as it was written; look at the disk.")
    index = index_path(options.output, job.shard, pieces, None)
    index.build(pieces)
    filled = sum(map(bool, lines))
    return Written(
        filled,
        len(lines) - filled + bool(filled),
        sum(part.tokens for part in index.load().parts),
        len(skipped),
        skipped[0] if skipped else "",
    )


def document_lines(job: Job, skipped: list[str], *, skips: bool) -> Iterator[bytes]:
    """Yield the lines of a shard; an empty one between documents."""
    between = False
    begun = False
    for stretch in job.stretches:
        with stretch.path.open("rb") as file:
            start, stop = (first_document(file, place) for place in (stretch.start, stretch.stop))
            file.seek(start)
            between = between or start == 0
            while file.tell() < stop:
                place = file.tell()
                line = file.readline()
                try:
                    words = line.decode("utf-8").split()
                    if b"\0" in line:
                        raise DataError("has a null byte inside")
                except (UnicodeDecodeError, DataError) as error:
                    message = where(file, place, stretch.path, line, error)
                    if not skips:
                        raise DataError(f"{message}; mend it, or leave such lines out with --skip-invalid") from None
                    skipped.append(message)
                    continue
                if not words:
                    between = True
                    continue
                if between and begun:
                    yield b""
                between, begun = False, True
                yield " ".join(words).encode()


def first_document(file: BinaryIO, place: int) -> int:
    """Where the first document begins at or after a place; a line, if no document does so soon."""
    if place == 0:
        return 0
    file.seek(place - 1)
    file.readline()
    first_line = file.tell()
    after_empty = False
    while file.tell() < first_line + DOCUMENT_WITHIN:
        start = file.tell()
        line = file.readline()
        if not line:
            return start if after_empty else first_line
        if after_empty and line.strip():
            return start
        after_empty = not line.strip()
    return first_line


def where(file: BinaryIO, place: int, path: Path, line: bytes, error: Exception) -> str:
    file.seek(0)
    number = 1
    while chunk := file.read(min(1 << 20, place - file.tell())):
        number += chunk.count(b"\n")
    file.seek(place + len(line))
    reason = f"byte 0x{line[error.start]:02x} is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    return f"{path}, line {number}: {reason}"


def check_round_trip(job: Job, lines: list[bytes], pieces: PieceEncoder) -> None:
    """Compare each line with the text of its tokens."""
    for first in range(0, len(lines), LINES_AT_ONCE):
        chosen = lines[first : first + LINES_AT_ONCE]
        units = [
            (number, unit_text(unit)) for number, line in enumerate(chosen, first + 1) for unit in split_line(line)
        ]
        decoded = pieces.decode(pieces([unit for _, unit in units]))
        for (number, unit), back in zip(units, decoded, strict=True):
            if back.encode() != unit:
                raise DataError(
                    f"{job.shard}, line {number}: the tokenizer makes {back[:40]!r} of "
                    f"{unit.decode(errors='replace')[:40]!r}; train one with torchscale-fairseq data "
                    "train-tokenizer, or accept it with --lossy"
                )


def add_source(split: str, shards: Sequence[Path], options: argparse.Namespace) -> None:
    """Write the source into json/SPLIT.json, in place of one of the same name."""
    path = options.output / "json" / f"{split}.json"
    make_directory(path.parent)
    sources: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    source: dict[str, Any] = {
        "name": options.name,
        "source_lang": options.source_lang,
        "source": [shard.relative_to(options.output).as_posix() for shard in shards],
    }
    if options.weight is not None:
        source["weight"] = options.weight
    sources = [other for other in sources if other["name"] != options.name] + [source]
    with write_atomically(path) as scratch:
        scratch.write_text(json.dumps(sources, indent=1) + "\n")
