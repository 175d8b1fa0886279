"""Running a Python script of the repository within the tests' process, which has imported torch already."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest import mock

from tests.fairseq_cli import Finished


def run_script(path: Path, *words: object) -> Finished:
    """As ``python path words``: the script's folder is searched for modules first."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", [str(path), *map(str, words)]),
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as request:
            code = int(request.code or 0)
    return Finished(code, stdout.getvalue(), stderr.getvalue())
