"""CSV tables whose first line names their columns."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchscale_fairseq.data.problems import DataError


def read_rows(
    path: Path, columns: Sequence[str], needed: str, aliases: Mapping[str, str] | None = None
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table, each with the number of the line in which it ends.

    Args:
        path: of a CSV file in UTF-8.
        columns: those that must be there; others are kept too.
        needed: a clause on what must be there, for messages.
        aliases: names of columns that stand for others.

    Raises:
        DataError: the file cannot be read, or a column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [(aliases or {}).get(name.strip(), name.strip()) for name in reader.fieldnames or ()]
            missing = [name for name in columns if name not in names]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]}, but {', '.join(names) or 'none at all'}; {needed}."
                )
            reader.fieldnames = names
            return [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; {needed}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error}); convert it.") from None
