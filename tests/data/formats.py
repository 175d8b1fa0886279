"""The small corpus in every format: the lines of its shards are the documents."""

import gzip
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.data.corpora import LINES, write_json

TOKENIZER = ("sentencepiece.bpe.model", "dict.txt")


def _json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": place, "text": text}) + "\n" for place, text in enumerate(texts)).encode()


def _text_gzip(texts: list[str], path: Path) -> None:
    path.write_bytes(gzip.compress("".join(f"{text}\n" for text in texts).encode(), 1))


def _json_plain(texts: list[str], path: Path) -> None:
    path.write_bytes(_json_lines(texts))


def _json_gzip(texts: list[str], path: Path) -> None:
    path.write_bytes(gzip.compress(_json_lines(texts), 1))


def _json_zstd(texts: list[str], path: Path) -> None:
    """Two frames, as programs that append write them."""
    import zstandard

    half = len(texts) // 2
    frames = [zstandard.ZstdCompressor().compress(_json_lines(part)) for part in (texts[:half], texts[half:])]
    path.write_bytes(b"".join(frames))


def _parquet(texts: list[str], path: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=50)


def _saved(texts: list[str], path: Path) -> None:
    import pyarrow

    save_table(pyarrow.table({"text": texts}), path)


def save_table(table: Any, path: Path) -> None:
    """A folder as ``save_to_disk`` of datasets writes it."""
    import pyarrow

    path.mkdir()
    with pyarrow.OSFile(str(path / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, 20)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


WRITERS: dict[str, tuple[str, str | None, Callable[[list[str], Path], None]]] = {
    "text.gz": (".txt.gz", None, _text_gzip),
    "json": (".jsonl", None, _json_plain),
    "json.gz": (".jsonl.gz", None, _json_gzip),
    "json.zst": (".jsonl.zst", "zstandard", _json_zstd),
    "parquet": (".parquet", "pyarrow", _parquet),
    "saved": ("", "pyarrow", _saved),
}
"""By format: suffix, package and function that writes texts to a file."""
FORMATS = [name for name, (_, package, _) in WRITERS.items() if package is None or find_spec(package)]


def write_conversations(records: Sequence[Mapping[str, Any]], data: Path, name: str) -> None:
    """Conversations of the split train as JSON lines ("json"), two files of "parquet", or a folder ("saved")."""
    if name == "json":
        (data / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return
    import pyarrow.parquet

    columns = dict.fromkeys(key for record in records for key in record)
    table = pyarrow.table({column: [record.get(column) for record in records] for column in columns})
    if name == "saved":
        save_table(table, data / "train")
        return
    for number, part in enumerate((table[:2], table[2:])):
        pyarrow.parquet.write_table(part, data / f"train-0000{number}-of-00002.parquet")


def made_format(corpus: Path, data: Path, name: str) -> Path:
    """The training text of a corpus in another format, with its tokenizer and dictionary."""
    suffix, _, write = WRITERS[name]
    (data / "shard").mkdir(parents=True)
    for shard in LINES:
        texts = [line for line in (corpus / f"shard/train/{shard}.txt").read_text().splitlines() if line]
        write(texts, data / f"shard/{shard}{suffix}")
    write_json(data, "train", [{"source": [f"shard/{shard}{suffix}" for shard in LINES], "source_lang": "en"}])
    for file in TOKENIZER:
        shutil.copy(corpus / file, data)
    return data
