"""fairseq-preprocess for the tools that start it, in the process that has imported fairseq already."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.fairseq_cli import Finished, run_fairseq
from torchscale_fairseq.tools.data import preparation


@contextmanager
def preprocessing_in_server() -> Iterator[None]:
    """Spare each run the five seconds of importing fairseq."""

    def run(command: Sequence[str], **_: Any) -> Finished:
        assert command[1:3] == ["-m", "fairseq_cli.preprocess"]
        return run_fairseq("preprocess", command[3:], plugin=False, cwd=Path.cwd())

    with mock.patch.object(preparation, "subprocess", SimpleNamespace(run=run)):
        yield
