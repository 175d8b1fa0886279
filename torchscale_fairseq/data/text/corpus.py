"""A split on disk: its sources, the indices of their shards, and the samples into which they are cut."""

import json
import logging
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from torchscale_fairseq.core.files import WriteError, write_atomically
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text import blocks
from torchscale_fairseq.data.text.formats import TEXT, reader_of
from torchscale_fairseq.data.text.formats.compression import suffix_of
from torchscale_fairseq.data.text.formats.locations import is_url
from torchscale_fairseq.data.text.index import IndexPath, ShardIndex
from torchscale_fairseq.data.text.sources import read_sources
from torchscale_fairseq.data.text.tokenized import TokenizedPath
from torchscale_fairseq.data.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SAMPLE = np.dtype([("id", "<i8"), ("shard", "<i4"), *((name, blocks.BLOCK[name]) for name in blocks.BLOCK.names or ())])
"""A row of :data:`blocks.BLOCK` within a shard, with the shard and the sample's number in the split."""
OPEN_INDICES = 256


@dataclass(frozen=True)
class PartOfShard:
    """A part of a shard, as a corpus keeps it in memory for 32 MiB of text."""

    shard: int
    part: int
    first_id: int


class Corpus:
    """The samples of a split.

    Args:
        data: the directory that holds json/ and shard/, or files of other formats; or its URL.
        split: such as "train".
        encoder: the tokenizer.
        capacity: tokens of a sample at most.
        break_mode: how text is cut into samples; see :func:`blocks.cut`.
        room_for_bos: leave room for a token in front of each document; see there.
        problems: takes missing shards, invalid lines and empty sources.
        index_dir: where indices of shards lie; ``data``/index by default.
        workers: processes that make missing indices.
        share: number of this process, and of those that do the same at the same time.
        text_field: name of the field or column of the text, in formats that have such.

    Raises:
        DataError: something is wrong with the data, or nothing is left of it.
    """

    def __init__(
        self,
        data: str | Path,
        split: str,
        encoder: Tokenizer,
        *,
        capacity: int,
        break_mode: str,
        problems: Problems,
        index_dir: Path | None = None,
        workers: int = 1,
        share: tuple[int, int] = (0, 1),
        room_for_bos: bool = False,
        text_field: str = "text",
    ):
        self.name = f"{data}, {split}"
        self.encoder = encoder
        self.capacity, self.break_mode, self.room_for_bos = capacity, break_mode, room_for_bos
        sources = read_sources(str(data), split, problems, text_field)
        self.shards = [shard for source in sources for shard in source.shards]
        self._paths = [
            index_path(data, shard, encoder, index_dir, source.field) for source in sources for shard in source.shards
        ]
        build_missing(self._paths, encoder, workers=workers, share=share)
        self.index = lru_cache(maxsize=OPEN_INDICES)(self._load_index)
        self._blocks = lru_cache(maxsize=4)(self._cut_part)
        self.parts: list[PartOfShard] = []
        self.samples: list[NDArray[np.int64]] = []
        """For each source, the samples of each of its parts."""
        weights: list[float | None] = []
        shard = first_id = 0
        for source in sources:
            counts: list[int] = []
            for _ in source.shards:
                self._check(shard, problems)
                for part, count in enumerate(self._count(shard)):
                    if count:
                        self.parts.append(PartOfShard(shard, part, first_id))
                        counts.append(count)
                        first_id += count
                shard += 1
            if counts:
                self.samples.append(np.array(counts))
                weights.append(source.weight)
            else:
                problems.found("empty sources", f"{self.name}: source '{source.name}' has no text")
        self.weights = None if None in weights else [weight for weight in weights if weight is not None]
        problems.report(self.name)
        if not self.samples:
            raise DataError(f"{self.name}: no text is left; look at what was skipped.")

    def __len__(self) -> int:
        """Samples of all sources."""
        return int(sum(counts.sum() for counts in self.samples))

    def rows(self, parts: NDArray[np.int64], within: NDArray[np.int64]) -> NDArray[Any]:
        """Where samples lie, as :data:`SAMPLE`.

        Args:
            parts: numbers of parts, through all sources.
            within: numbers of samples within their parts.
        """
        rows = np.zeros(len(parts), SAMPLE)
        by_part = np.argsort(parts, kind="stable")
        edges = np.flatnonzero(np.diff(parts[by_part])) + 1
        for chosen in np.split(by_part, edges):
            number = int(parts[chosen[0]])
            part, table = self.parts[number], self._blocks(number)
            found = table[within[chosen]]
            for name in table.dtype.names or ():
                rows[name][chosen] = found[name]
            rows["shard"][chosen] = part.shard
            rows["id"][chosen] = part.first_id + within[chosen]
        return rows

    def _cut_part(self, number: int) -> NDArray[Any]:
        part = self.parts[number]
        return self._cut(self.index(part.shard), part.part)

    def _cut(self, index: ShardIndex, number: int) -> NDArray[Any]:
        part = index.parts[number]
        found = blocks.cut(
            index.units(part.first_unit, part.units), self.capacity, self.break_mode, room_for_bos=self.room_for_bos
        )
        found["first"] += part.first_unit
        found["byte"] += part.first_byte
        return found

    def _count(self, shard: int) -> list[int]:
        """Samples of each part, which are stored next to the index."""
        path = self._paths[shard].header
        kind = f"{self.break_mode}-{self.capacity}{'-packed' if self.room_for_bos else ''}"
        kept = path.with_name(f"{path.stem}.{kind}")
        with suppress(OSError, ValueError):
            if kept.stat().st_mtime >= path.stat().st_mtime:
                return list(json.loads(kept.read_text()))
        index = self.index(shard)
        counts = [len(self._cut(index, part)) for part in range(len(index.parts))]
        with suppress(WriteError), write_atomically(kept, several_writers=True) as scratch:
            scratch.write_text(json.dumps(counts))
        return counts

    def _check(self, shard: int, problems: Problems) -> None:
        index = self.index(shard)
        if index.invalid_count:
            number, reason = index.invalid[0]
            where = f"{self.shards[shard]}, {index.counts} {number}"
            problems.found(f"invalid {index.counts}s", f"{where}: {reason}", index.invalid_count)

    def content(self, shard: int) -> str:
        """The file that the samples of a shard are read from: the shard, or its tokens."""
        return self._paths[shard].content

    def token_type(self, shard: int) -> "np.dtype[Any] | None":
        """The type of a shard's tokens on disk; None for a shard of text, which is tokenized as it is read."""
        path = self._paths[shard]
        return path.token if isinstance(path, TokenizedPath) else None

    def _load_index(self, shard: int) -> ShardIndex:
        return self._paths[shard].load()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("index", "_blocks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.index = lru_cache(maxsize=OPEN_INDICES)(self._load_index)
        self._blocks = lru_cache(maxsize=4)(self._cut_part)


def index_path(
    data: str | Path, shard: str | Path, encoder: Tokenizer, index_dir: Path | None, field: str = "text"
) -> IndexPath:
    """Where a shard's index lies.

    Args:
        data: the data directory, or its URL.
        shard: path or URL of the file.
        encoder: the tokenizer.
        index_dir: of all indices; ``data``/index by default.
        field: name of the field or column of the text.

    Raises:
        DataError: the data directory is a URL, and no ``index_dir`` is given.
    """
    data, shard = str(data), str(shard)
    if index_dir is None and is_url(data):
        raise DataError(f"{data} is a URL, where no index can be written; name a local folder for it with --index-dir.")
    folder = (index_dir or Path(data) / "index") / encoder.fingerprint / _folder(data, shard, index_dir is not None)
    if reader_of(shard) is TEXT and encoder.cuts_lines and not suffix_of(shard) and not is_url(shard):
        return IndexPath(folder, Path(shard))
    return TokenizedPath(folder, shard, field, len(encoder.pieces()))


def _folder(data: str, shard: str, elsewhere: bool) -> Path:
    """The folder of a shard's index, relative to that of all indices."""
    if is_url(shard):
        return Path(*shard.split("://", 1)).parent
    full, root = Path(os.path.abspath(shard)), Path(os.path.abspath(data))
    return full.parent.relative_to(root if full.is_relative_to(root) and not elsewhere else full.anchor)


def build_missing(
    paths: Sequence[IndexPath], encoder: Tokenizer, *, workers: int = 1, share: tuple[int, int] = (0, 1)
) -> None:
    """Make the indices that are missing or older than their shards.

    Args:
        workers: processes.
        share: number of this process among how many that do the same at the same time. Each begins with a share of
            its own, then takes what is still missing.
    """
    missing = [path for path in paths if not path.is_current()]
    if not missing:
        return
    rank, processes = share
    own = missing[rank::processes]
    others = [path for path in missing if path not in own]
    random.Random(rank).shuffle(others)
    total = sum(path.size for path in missing)
    logger.info("indexing %d shards, %s bytes, once for this text and tokenizer", len(missing), f"{total:,}")
    started = time.monotonic()
    with tqdm(total=total, unit="B", unit_scale=True, desc="indexing", disable=None, leave=False) as bar:
        for chosen in (own, others):
            _build_all(chosen, encoder, workers, bar)
    logger.info("indexed in %.1f seconds", time.monotonic() - started)


def _build_all(paths: Sequence[IndexPath], encoder: Tokenizer, workers: int, bar: Any) -> None:
    if min(workers, len(paths)) < 2:
        for path in paths:
            _build(path, encoder, bar.update)
        return
    with ProcessPoolExecutor(min(workers, len(paths))) as pool:
        running = {pool.submit(_build, path, encoder): path for path in paths}
        for done in as_completed(running):
            done.result()
            bar.update(running[done].size)


def _build(path: IndexPath, encoder: Tokenizer, progress: Any = lambda _: None) -> None:
    if path.is_current():
        progress(path.size)
    else:
        try:
            path.build(encoder, progress)
        except WriteError as error:
            raise DataError(f"{error} --index-dir names another place for the index of {path.shard}.") from error
