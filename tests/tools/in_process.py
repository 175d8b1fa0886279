"""Running a subcommand of torchscale-fairseq within the tests' process, which has imported torch already."""

import contextlib
import io
from unittest import mock

from tests.fairseq_cli import Finished
from torchscale_fairseq.tools import command


class _Text(io.TextIOWrapper):
    """A stream as a process has it, whose buffer takes bytes."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="", write_through=True)

    def content(self) -> str:
        self.flush()
        written = self.buffer
        assert isinstance(written, io.BytesIO)
        return written.getvalue().decode()


def run_tool(*words: object, stdin: str = "") -> Finished:
    """As ``torchscale-fairseq words``, without handlers of signals, which would outlive the test."""
    stdout, stderr = _Text(), _Text()
    code = 0
    with (
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")),
        mock.patch("signal.signal"),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            command.main([str(word) for word in words])
        except SystemExit as request:
            code = int(request.code or 0)
    return Finished(code, stdout.content(), stderr.content())
