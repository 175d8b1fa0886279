"""Labelled images in shards: tar files, as WebDataset has them, and Parquet files, as the Hugging Face Hub has them.

A tar file is read in place, by the bytes of each image, so any worker reads any image in any order. Parquet has no such
places: each file is copied once to a tar file under ``DATA/index``.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist

from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.data.images.stored import StoredImage
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text.formats.columns import explained
from torchscale_fairseq.data.text.formats.packages import imported

TAR, PARQUET = ".tar", ".parquet"
LABELS = (".cls", ".json")
"""Ends of names of the members that hold labels: the label as text, or an object with the field ``label``."""
IGNORED = (".txt", ".xml")
ROWS_AT_ONCE = 64
COLUMNS = ["image", "label"]

Labelled = tuple[StoredImage, int | str]


def find_shards(folder: Path) -> list[Path]:
    """The shards of a split, sorted; empty for a folder of anything else.

    Raises:
        DataError: the folder has folders as well.
    """
    found = [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    shards = sorted(path for path in found if path.suffix in (TAR, PARQUET))
    if shards and any(path.is_dir() for path in found):
        raise DataError(f"{folder} has shards, such as {shards[0].name}, and folders; move one of the two kinds away.")
    return shards


def read_shards(shards: list[Path], copies: Path) -> list[Labelled]:
    """The images of shards and their labels, in order.

    Args:
        shards: tar and Parquet files.
        copies: folder for copies of Parquet files.

    Raises:
        DataError: a shard cannot be read, or an image has no label.
        ModuleNotFoundError: pyarrow is not installed.
    """
    of_columns = [shard for shard in shards if shard.suffix == PARQUET]
    if of_columns and dist.is_initialized():  # the first process copies for all that see its disk
        if dist.get_rank() == 0:
            _copied(of_columns, copies)
        dist.barrier()
    copied = dict(zip(of_columns, _copied(of_columns, copies), strict=True))
    tars = [copied.get(shard, shard) for shard in shards]
    return [labelled for tar in tars for labelled in _read(tar, tar.stat().st_mtime_ns)]


@cache
def _read(shard: Path, _changed: int) -> list[Labelled]:
    """The images of a tar file; members of a sample have one name up to the first dot, and follow each other."""
    found: list[Labelled] = []
    for key, members in _samples(shard):
        images = [member for end, member in members.items() if end not in (*LABELS, *IGNORED)]
        label = next((members[end] for end in LABELS if end in members), None)
        if len(images) != 1 or not isinstance(label, str):
            raise DataError(
                f"{shard} has {len(images)} image(s) and {'a' if label is not None else 'no'} label for the sample "
                f"{key}; it needs one image, such as {key}.jpg, and its label in {key}.cls or {key}.json."
            )
        found.append((images[0], int(label) if label.isdecimal() else label))
    return found


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of each sample, and by their ends its label as text and its other members as images."""
    key = ""
    members: dict[str, Any] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, dot, end = base.partition(".")
                name, end = f"{folder}/{stem}".lstrip("/"), (dot + end).lower()
                if name != key and members:
                    yield key, members
                    members = {}
                key = name
                stored = StoredImage(shard, member.name, member.offset_data, member.size)
                members[end] = _label(stored.read(), end, str(stored)) if end in LABELS else stored
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard} is not a tar file without compression that can be read: {error}.") from error
    if members:
        yield key, members


def _label(content: bytes, end: str, where: str) -> str:
    try:
        label = json.loads(content)["label"] if end == ".json" else content.decode().strip()
    except (ValueError, KeyError, TypeError):
        label = ""
    if not str(label).strip():
        raise DataError(f'{where} has no label; it should be such as {{"label": 0}} in .json, or 0 in .cls.')
    return str(label)


def _copied(files: list[Path], folder: Path) -> list[Path]:
    """Copies of Parquet files as tar files, made where they are missing or older."""
    copies = []
    for file in files:
        copy = folder / f"{file.name}{TAR}"
        if not copy.exists() or copy.stat().st_mtime_ns < file.stat().st_mtime_ns:
            make_directory(folder)
            with write_atomically(copy, several_writers=True) as scratch:
                _copy(file, scratch)
        copies.append(copy)
    return copies


def _copy(file: Path, copy: Path) -> None:
    parquet = imported("pyarrow.parquet", "a Parquet file")
    with explained(str(file), "Parquet"):
        table = parquet.ParquetFile(file)
    missing = [name for name in COLUMNS if name not in table.schema_arrow.names]
    if missing:
        raise DataError(
            f"{file} has no column '{missing[0]}' (there: {', '.join(table.schema_arrow.names)}); rename that of the "
            f"{missing[0]}s."
        )
    with tarfile.open(copy, "w", format=tarfile.GNU_FORMAT) as archive, explained(str(file), "Parquet"):
        row = 0
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=COLUMNS):
            for values in batch.to_pylist():
                row += 1
                image, label = values["image"], values["label"]
                content = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(content, bytes) or label is None:
                    raise DataError(f"{file}, row {row:,}, has no image or no label.")
                _add(archive, f"{row:09d}.image", content)
                _add(archive, f"{row:09d}.cls", str(label).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
