"""Shards of text for --task pretraining, written in parallel, read back, and indexed."""

import argparse
import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.corpus import index_path
from torchscale_fairseq.data.text.formats.locations import is_url, size_of, stamp_of
from torchscale_fairseq.data.text.index import split_line, unit_text
from torchscale_fairseq.data.text.raw import field_in, is_cut_by_bytes, raw_lines
from torchscale_fairseq.data.text.sources import files_of
from torchscale_fairseq.data.text.tokenizers import Tokenizer, open_tokenizer, tokenizer_of
from torchscale_fairseq.tools.data.splits import SPLITS

DOCUMENT_WITHIN = 1 << 20
"""Bytes in which a shard looks for the end of a document; it ends with a line otherwise."""
LINES_AT_ONCE = 1000


@dataclass(frozen=True)
class Stretch:
    """A stretch of a file of raw text, approximately between two bytes; or a whole file that has to be read from its
    beginning."""

    path: str
    start: int
    stop: int
    field: str | None = None
    """Name of the field or column of the text, of a whole file."""


@dataclass(frozen=True)
class Job:
    """A shard to be written, and those after it that a whole file fills."""

    shard: Path
    stretches: tuple[Stretch, ...]

    @property
    def size(self) -> int:
        """Bytes to be read."""
        return sum(stretch.stop - stretch.start for stretch in self.stretches)

    @property
    def shards(self) -> list[Path]:
        """All that was written, the first shard last."""
        return [*sorted(self.shard.parent.glob(f"{self.shard.stem}-*.txt")), self.shard]

    def part(self, number: int) -> Path:
        """A shard of the job."""
        return self.shard.with_stem(f"{self.shard.stem}-{number:05}") if number else self.shard


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
    model = tokenizer_of(str(options.output), options.tokenizer_file).path
    for split in SPLITS:
        if paths := getattr(options, split):
            shards = [shard for job in write_split(split, paths, model, options) for shard in job.shards]
            filled = [shard for shard in shards if shard.stat().st_size]
            if not filled:
                shutil.rmtree(shards[0].parent)
                raise InputError(f"--{split} {' '.join(map(str, paths))}: no line has text")
            add_source(split, filled, options)


def write_split(split: str, paths: Sequence[str], model: str, options: argparse.Namespace) -> list[Job]:
    """Write the shards that are not there yet."""
    folder = options.output / "shard" / split / options.name
    files = [file for path in paths for file in files_of(path)]
    jobs = plan(files, folder, options.shard_size * 1_000_000, options.text_field)
    remember_plan(folder / "plan.json", jobs)
    pieces = tokenizer(model)
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


def plan(files: Sequence[str], folder: Path, shard_bytes: int, field: str | None = None) -> list[Job]:
    """Divide the text into shards, from the sizes of the files alone. Each file that has to be read from its beginning
    is a job."""
    jobs: list[tuple[Stretch, ...]] = []
    stretches: list[Stretch] = []
    room = shard_bytes
    for file in files:
        size = size_of(file)
        if not is_cut_by_bytes(file):
            jobs += [tuple(stretches)] * bool(stretches)
            jobs.append((Stretch(absolute(file), 0, size, field_in(file, field)),))
            stretches, room = [], shard_bytes
            continue
        start = 0
        while start < size:
            stop = min(size, start + room)
            stretches.append(Stretch(absolute(file), start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                jobs.append(tuple(stretches))
                stretches, room = [], shard_bytes
    if stretches:
        jobs.append(tuple(stretches))
    if not jobs:
        raise InputError(f"{', '.join(files)}: no text")
    return [Job(folder / f"{number:05}.txt", chosen) for number, chosen in enumerate(jobs)]


def remember_plan(path: Path, jobs: Sequence[Job]) -> None:
    """Refuse to resume with shards that were begun from other text."""
    content = [
        {
            "shard": job.shard.name,
            "text": [_remembered(stretch) for stretch in job.stretches],
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


def _remembered(stretch: Stretch) -> list[Any]:
    if is_url(stretch.path):
        return [stretch.path, stretch.field, stamp_of(stretch.path)]
    fields = [] if stretch.field is None else [stretch.field]
    return [stretch.path, stretch.start, stretch.stop, os.stat(stretch.path).st_mtime_ns, *fields]


def absolute(file: str) -> str:
    """A path that holds in any folder; a URL stays as it is."""
    return file if is_url(file) else os.path.abspath(file)


def is_written(job: Job, pieces: Tokenizer, options: argparse.Namespace) -> bool:
    return job.shard.exists() and all(
        index_path(options.output, shard, pieces, None).is_current() for shard in job.shards
    )


@functools.cache
def tokenizer(model: str) -> Tokenizer:
    """The tokenizer in a file, which a worker process loads once."""
    return open_tokenizer(model)


def write_shard(job: Job, model: str, options: argparse.Namespace) -> Written:
    """Write a job's shards, read them back, and index them. The first is written last, so that it shows that all are
    there."""
    problems = Problems(skip=options.skip_invalid)
    parts = enumerate(parts_of(job, problems, options.shard_size * 1_000_000))
    _, first = next(parts)
    written = Written()
    for number, lines in parts:
        written += write_lines(job.part(number), lines, model, options)
    written += write_lines(job.shard, first, model, options)
    first_skipped = next(iter(problems.first.values()), "")
    return written + Written(skipped=problems.counts.total(), first_skipped=first_skipped)


def parts_of(job: Job, problems: Problems, shard_bytes: int) -> Iterator[list[bytes]]:
    """The lines of each shard of a job: those of its stretches, or documents of a whole file up to the shard's size."""
    (stretch, *_) = job.stretches
    if stretch.field is None:
        yield list(document_lines(job, problems))
        return
    part: list[bytes] = []
    size = 0
    for line in raw_lines(stretch.path, stretch.field, problems):
        if size >= shard_bytes and line and not part[-1]:
            yield part[:-1]
            part, size = [], 0
        if line or (part and part[-1]):
            part.append(line)
            size += len(line) + 1
    yield part[:-1] if part and not part[-1] else part


def write_lines(shard: Path, lines: list[bytes], model: str, options: argparse.Namespace) -> Written:
    """Write a shard, read it back, and index it."""
    pieces = tokenizer(model)
    text = b"".join(line + b"\n" for line in lines)
    if not options.lossy:
        check_round_trip(shard, lines, pieces)
    with write_atomically(shard) as scratch:
        scratch.write_bytes(text)
        if scratch.read_bytes() != text:
            raise DataError(f"{scratch} does not read back as it was written; look at the disk.")
    index = index_path(options.output, shard, pieces, None)
    index.build(pieces)
    filled = sum(map(bool, lines))
    return Written(filled, len(lines) - filled + bool(filled), sum(part.tokens for part in index.load().parts))


def document_lines(job: Job, problems: Problems) -> Iterator[bytes]:
    """Yield the lines of a shard; an empty one between documents."""
    between = False
    begun = False
    for stretch in job.stretches:
        with open(stretch.path, "rb") as file:
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
                    if not problems.skip:
                        raise DataError(f"{message}; mend it, or leave such lines out with --skip-invalid") from None
                    problems.found("invalid lines", message)
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


def where(file: BinaryIO, place: int, path: str, line: bytes, error: Exception) -> str:
    file.seek(0)
    number = 1
    while chunk := file.read(min(1 << 20, place - file.tell())):
        number += chunk.count(b"\n")
    file.seek(place + len(line))
    reason = f"byte 0x{line[error.start]:02x} is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    return f"{path}, line {number}: {reason}"


def check_round_trip(shard: Path, lines: list[bytes], pieces: Tokenizer) -> None:
    """Compare each line with the text of its tokens."""
    for first in range(0, len(lines), LINES_AT_ONCE):
        chosen = lines[first : first + LINES_AT_ONCE]
        units = [
            (number, unit_text(unit))
            for number, line in enumerate(chosen, first + 1)
            for unit in (split_line(line) if pieces.cuts_lines else [line])
        ]
        decoded = pieces.decode(pieces([unit for _, unit in units]))
        for (number, unit), back in zip(units, decoded, strict=True):
            if back.encode() != unit:
                raise DataError(
                    f"{shard}, line {number}: the tokenizer makes {back[:40]!r} of "
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
