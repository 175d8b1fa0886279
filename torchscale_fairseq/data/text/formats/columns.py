"""Formats of columns: Parquet, and the Arrow streams of which a saved folder of ``datasets`` consists."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchscale_fairseq.data.problems import DataError

from .lines import document_of
from .locations import opened
from .packages import imported
from .reader import Document

ROWS_AT_ONCE = 1024


class Parquet:
    """A column of a Parquet file."""

    name = "Parquet"
    suffixes: tuple[str, ...] = (".parquet",)
    counts = "row"
    holds_lines = False
    compressible = False

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """The text of each row; see ``Reader``."""
        parquet = imported("pyarrow.parquet", "a Parquet file")
        with opened(location) as file:
            with explained(location, self.name):
                table = parquet.ParquetFile(file)
            _check_column(location, table.schema_arrow, field)
            batches = table.iter_batches(ROWS_AT_ONCE, columns=[field])
            yield from _texts(location, self.name, batches, field)


class Arrow:
    """A column of an Arrow stream, as ``datasets`` writes them."""

    name = "Arrow"
    suffixes: tuple[str, ...] = (".arrow",)
    counts = "row"
    holds_lines = False
    compressible = False

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """The text of each row; see ``Reader``."""
        ipc = imported("pyarrow.ipc", "a saved folder of datasets")
        with opened(location) as file:
            with explained(location, self.name):
                stream = ipc.open_stream(file)
            _check_column(location, stream.schema, field)
            yield from _texts(location, self.name, iter(stream), field)


def _texts(location: str, name: str, batches: Iterator[Any], field: str) -> Iterator[Document]:
    number = 1
    while True:
        with explained(location, name, f", row {number:,}"):
            batch = next(batches, None)
        if batch is None:
            return
        for value in batch.column(batch.schema.get_field_index(field)).to_pylist():
            yield document_of(number, value, f"column '{field}'")
            number += 1


def _check_column(location: str, schema: Any, field: str) -> None:
    if field not in schema.names:
        raise DataError(
            f"{location} has no column '{field}' (there: {', '.join(schema.names)}); name the one of the text with "
            "--text-field."
        )


@contextmanager
def explained(location: str, name: str, where: str = "") -> Iterator[None]:
    """Turn errors of pyarrow into a DataError.

    Raises:
        DataError: the block failed.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ArrowException derives from one of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{location}{where}: cannot be read as {name}: {reason.removesuffix('.')}; write the file again, or leave "
            "it out of its source."
        ) from error
