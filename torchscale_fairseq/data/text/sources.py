"""json/SPLIT.json: which shards make up a split, in TorchScale's format.

A list of objects with ``source`` (paths of shards, relative to the data directory), ``source_lang``, and optionally
``name`` and ``weight`` (TorchScale's older ``count`` is read as a weight too).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchscale_fairseq.data.problems import DataError, Problems


@dataclass(frozen=True)
class Source:
    """Shards that belong together."""

    name: str
    language: str
    shards: tuple[Path, ...]
    weight: float | None
    """Share of the samples of an epoch, relative to the other weights; None for its share of the text."""


def read_sources(data: Path, split: str, problems: Problems) -> list[Source]:
    """The sources of a split; missing shards and empty sources are problems.

    Raises:
        DataError: there is no such split, or its file is not what it should be.
    """
    path = data / "json" / f"{split}.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.json"))) or "none"
        raise DataError(
            f"{path} does not exist; it lists the shards of the subset '{split}' (there: {known}). "
            "torchscale-fairseq data shard-corpus writes it; training without validation: --disable-validation."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8.") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} must hold a list of sources, each with 'source' and 'source_lang'.")
    sources = [_source(entry, f"{path}, source {number}", data) for number, entry in enumerate(entries, start=1)]
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        without = next(source for source in sources if source.weight is None)
        raise DataError(f"{path}: source '{without.name}' has no weight, but others have; give each one, or none.")
    sources = [_existing(source, path, problems) for source in sources]
    return [source for source in sources if source.shards]


def _source(entry: Any, where: str, data: Path) -> Source:
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
    return Source(name, language, tuple(data / shard for shard in shards), weight)


def _existing(source: Source, path: Path, problems: Problems) -> Source:
    if not source.shards:
        problems.found("empty sources", f"{path}: source '{source.name}' lists no shards")
    for shard in source.shards:
        if not shard.is_file():
            problems.found("missing shards", f"{path}: source '{source.name}' lists {shard}, which does not exist")
    present = tuple(shard for shard in source.shards if shard.is_file())
    return Source(source.name, source.language, present, source.weight)
