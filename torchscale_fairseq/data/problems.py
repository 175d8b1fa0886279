"""Problems of data on disk, which are errors, or are counted and reported."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

from torchscale_fairseq.core.errors import InputError

logger = logging.getLogger(__name__)


class DataError(InputError):
    """Data cannot be used; the message names the file, the line where there is one, and a way out."""


class Problems:
    """Collects what is wrong with a split.

    Args:
        skip: go on without what is wrong (``--skip-invalid``), instead of raising at the first problem.
    """

    def __init__(self, *, skip: bool):
        self.skip = skip
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def found(self, kind: str, message: str, count: int = 1) -> None:
        """One problem, or several of a kind.

        Args:
            kind: in the plural, such as "invalid lines".
            message: on the first of them.

        Raises:
            DataError: unless problems are skipped.
        """
        if not self.skip:
            more = f" ({count:,} {kind} in all)" if count > 1 else ""
            raise DataError(f"{message}{more}; mend it, or leave such things out with --skip-invalid.")
        self.counts[kind] += count
        self.first.setdefault(kind, message)

    @contextlib.contextmanager
    def kind(self, kind: str) -> Iterator[None]:
        """Take a DataError of the block as one problem of a kind.

        Raises:
            DataError: unless problems are skipped.
        """
        try:
            yield
        except DataError as error:
            self.found(kind, str(error).removesuffix("."))

    def report(self, what: str) -> None:
        """Log a line for each kind of problem that was skipped."""
        for kind, count in self.counts.items():
            logger.warning("%s: skipped %s %s, the first: %s", what, f"{count:,}", kind, self.first[kind])
