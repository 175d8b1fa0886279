"""Progress bars: on stderr, if that is a terminal, and nowhere else."""

import io
from unittest import mock

import pytest

from torchscale_fairseq.tools.progress import progress


class Stream(io.StringIO):
    """A stream that is a terminal or not."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("stdout", "stderr", "prints", "shown"),
    [(True, True, False, True), (False, True, True, True), (True, True, True, False), (False, False, False, False)],
)
def test_where_a_bar_is_shown(stdout: bool, stderr: bool, prints: bool, shown: bool) -> None:
    out, err = Stream(stdout), Stream(stderr)
    with mock.patch("sys.stdout", out), mock.patch("sys.stderr", err):
        assert list(progress(range(3), "reading", "file", prints=prints)) == [0, 1, 2]
    assert out.getvalue() == "" and ("reading: 100%" in err.getvalue()) == shown
