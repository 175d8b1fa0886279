"""json/SPLIT.json: which shards make up a split, in TorchScale's format.

A list of objects with ``source`` (shards), ``source_lang``, and optionally ``name``, ``text_field`` and ``weight``
(TorchScale's older ``count`` is read as a weight too). A shard is a path relative to the data directory or a URL, of a
file, of a pattern of files or of a saved folder of ``datasets``. Without that list, a split is one source of the files
that are named after it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.formats import READERS, Reader, reader_of, suffixes, uncompressed
from torchscale_fairseq.data.text.formats.locations import PATTERN, exists, files_like, joined, read_bytes

STATE = "state.json"
"""The file in a saved folder of ``datasets`` that lists the others."""


@dataclass(frozen=True)
class Source:
    """Shards that belong together."""

    name: str
    language: str
    shards: tuple[str, ...]
    """Paths or URLs of files."""
    weight: float | None
    """Share of the samples of an epoch, relative to the other weights; None for its share of the text."""
    field: str
    """Name of the field or column of the text, in formats that have such."""


def read_sources(data: str, split: str, problems: Problems, field: str = "text") -> list[Source]:
    """The sources of a split; missing shards and empty sources are problems.

    Args:
        data: path or URL of the data directory.
        split: such as "train".
        problems: takes them.
        field: --text-field, for sources that name none.

    Raises:
        DataError: there is no such split, or its file is not what it should be.
    """
    path = joined(joined(data, "json"), f"{split}.json")
    if exists(path):
        return _listed(path, data, problems, field)
    if files := files_named_after(data, split):
        return [Source(split, "", tuple(files), None, field)]
    known = [name.rpartition("/")[2].removesuffix(".json") for name in files_like(joined(data, "json/*.json"))]
    raise DataError(
        f"{path} does not exist; it lists the shards of the subset '{split}' (there: {', '.join(known) or 'none'}), "
        f"and no file like {split}.jsonl or {split}/*.parquet stands in its place. "
        "torchscale-fairseq data shard-corpus writes it; training without validation: --disable-validation."
    )


def files_named_after(data: str, split: str, readers: Sequence[Reader] = READERS) -> list[str]:
    """The files of a split by their names: SPLIT.jsonl, SPLIT-00000-of-00002.parquet, or any in the folder SPLIT.

    Args:
        data: path or URL of the data directory.
        split: such as "train".
        readers: of the formats that count.

    Raises:
        DataError: two files differ by compression alone, or a saved folder of ``datasets`` does not list its files.
    """
    folder = joined(data, split)
    if exists(joined(folder, STATE)):
        return _saved(folder)
    patterns = [
        pattern + suffix for pattern in (f"{split}", f"{split}-*", f"{split}/*") for suffix in suffixes(readers)
    ]
    found = sorted(set(chain.from_iterable(files_like(joined(data, pattern)) for pattern in patterns)))
    for file, after in pairwise(found):
        if uncompressed(file) == uncompressed(after):
            raise DataError(f"{file} and {after} differ by their compression alone; move one of them away.")
    return found


def _saved(folder: str) -> list[str]:
    """The files of a folder that ``save_to_disk`` of ``datasets`` wrote, in their order."""
    path = joined(folder, STATE)
    try:
        return [joined(folder, file["filename"]) for file in json.loads(read_bytes(path))["_data_files"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} does not list the files of a saved data set; save it again.") from None


def _listed(path: str, data: str, problems: Problems, field: str) -> list[Source]:
    """The sources that a file lists."""
    try:
        entries = json.loads(read_bytes(path).decode("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8.") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} must hold a list of sources, each with 'source' and 'source_lang'.")
    sources = [_source(entry, f"{path}, source {number}", data, field) for number, entry in enumerate(entries, start=1)]
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        without = next(source for source in sources if source.weight is None)
        raise DataError(f"{path}: source '{without.name}' has no weight, but others have; give each one, or none.")
    sources = [_existing(source, path, problems) for source in sources]
    return [source for source in sources if source.shards]


def _source(entry: Any, where: str, data: str, field: str) -> Source:
    shards = entry.get("source") if isinstance(entry, dict) else None
    if not isinstance(shards, list) or not all(isinstance(shard, str) for shard in shards):
        raise DataError(f"{where}: needs 'source', a list of paths of shards.")
    weight = entry.get("weight", entry.get("count"))
    if weight is not None:
        try:
            weight = float(weight)
        except (TypeError, ValueError):
            raise DataError(f"{where}: weight {weight!r} is not a number.") from None
        if not (weight > 0 and math.isfinite(weight)):
            raise DataError(f"{where}: weight ({weight}) must be above 0; leave the source out instead.")
    language = str(entry.get("source_lang", ""))
    name = str(entry.get("name") or language or where)
    files = chain.from_iterable(files_of(joined(data, shard)) for shard in shards)
    return Source(name, language, tuple(files), weight, str(entry.get("text_field") or field))


def files_of(shard: str) -> list[str]:
    """The files of a shard, which is one itself, a pattern of files or a saved folder; itself if it is missing."""
    if PATTERN.intersection(shard) and not exists(shard):
        return files_like(shard) or [shard]
    is_file = shard.endswith(tuple(suffixes()))
    return [shard] if is_file or not exists(joined(shard, STATE)) else _saved(shard)


def _existing(source: Source, path: str, problems: Problems) -> Source:
    if not source.shards:
        problems.found("empty sources", f"{path}: source '{source.name}' lists no shards")
    missing = [shard for shard in source.shards if not exists(shard)]
    for shard in missing:
        problems.found("missing shards", f"{path}: source '{source.name}' lists {shard}, which does not exist")
    present = tuple(shard for shard in source.shards if shard not in missing)
    return Source(source.name, source.language, present, source.weight, source.field)


def read_texts(shard: str, field: str, at_once: int = 10_000) -> Iterator[list[bytes]]:
    """The texts of a file, some at a time; invalid ones are empty.

    Args:
        shard: path or URL of the file.
        field: name of the field or column of the text.
        at_once: length of the lists; the last one is shorter.

    Raises:
        DataError: the file cannot be read.
    """
    texts = (document.text for document in reader_of(shard).documents(shard, field))
    while chosen := list(islice(texts, at_once)):
        yield chosen
