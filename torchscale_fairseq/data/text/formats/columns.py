"""Formats of columns: Parquet, and the Arrow streams of which a saved folder of ``datasets`` consists."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torchscale_fairseq.data.problems import DataError

from .lines import document_of
from .locations import opened
from .packages import imported
from .reader import Document, Record

ROWS_AT_ONCE = 1024
TEXT_ADVICE = "; name the one of the text with --text-field"


class Parquet:
    """Columns of a Parquet file."""

    name = "Parquet"
    suffixes: tuple[str, ...] = (".parquet",)
    counts = "row"
    value = "column"
    holds_lines = False
    compressible = False

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """The text of each row; see ``Reader``."""
        return _documents(self.records(location, [field], TEXT_ADVICE), field)

    def records(self, location: str, names: Sequence[str], advice: str = "") -> Iterator[Record]:
        """The values of each row; see ``RecordReader``."""
        parquet = imported("pyarrow.parquet", "a Parquet file")
        with opened(location) as file:
            with explained(location, self.name):
                table = parquet.ParquetFile(file)
            columns = _present(location, table.schema_arrow, names, advice)
            yield from _rows(location, self.name, table.iter_batches(ROWS_AT_ONCE, columns=columns))


class Arrow:
    """Columns of an Arrow stream, as ``datasets`` writes them."""

    name = "Arrow"
    suffixes: tuple[str, ...] = (".arrow",)
    counts = "row"
    value = "column"
    holds_lines = False
    compressible = False

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """The text of each row; see ``Reader``."""
        return _documents(self.records(location, [field], TEXT_ADVICE), field)

    def records(self, location: str, names: Sequence[str], advice: str = "") -> Iterator[Record]:
        """The values of each row; see ``RecordReader``."""
        ipc = imported("pyarrow.ipc", "a saved folder of datasets")
        with opened(location) as file:
            with explained(location, self.name):
                stream = ipc.open_stream(file)
            columns = _present(location, stream.schema, names, advice)
            yield from _rows(location, self.name, (batch.select(columns) for batch in stream))


def _documents(records: Iterator[Record], field: str) -> Iterator[Document]:
    return (document_of(record.number, record.content[field], f"column '{field}'") for record in records)


def _rows(location: str, name: str, batches: Iterator[Any]) -> Iterator[Record]:
    number = 1
    while True:
        with explained(location, name, f", row {number:,}"):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        for row in rows:
            yield Record(number, {column: _without_nulls(value) for column, value in row.items()})
            number += 1


def _without_nulls(value: Any) -> Any:
    """A value without the null fields of its structs, which have all fields of their column."""
    if isinstance(value, dict):
        return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _present(location: str, schema: Any, names: Sequence[str], advice: str) -> list[str]:
    """Those of the columns that a file has.

    Raises:
        DataError: it has none of them.
    """
    found = [name for name in names if name in schema.names]
    if not found:
        wanted = " or ".join(f"'{name}'" for name in names)
        raise DataError(f"{location} has no column {wanted} (there: {', '.join(schema.names)}){advice}.")
    return found


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
