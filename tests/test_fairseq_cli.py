"""The processes that ``fairseq_cli`` starts."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.fairseq_cli import REPOSITORY, run_gloo, run_program


def test_processes_end_when_their_time_is_over(tmp_path: Path) -> None:
    """They would go on, and keep a GPU, when the process that started them has ended."""
    code = f"""
    import os, pathlib, time
    (pathlib.Path({str(tmp_path)!r}) / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(60)
    """
    assert run_gloo(2, code, timeout=10).returncode == -signal.SIGALRM
    for rank in ("0", "1"):
        process = int((tmp_path / rank).read_text())
        until = time.monotonic() + 10
        while runs(process):
            assert time.monotonic() < until, f"process {rank} is left"
            time.sleep(0.1)


def test_processes_write_whole_lines() -> None:
    """Another process of the group writes to the file in between."""
    code = """
    import os, sys
    written = os.fstat(1).st_size
    print("half", end=" ")
    assert os.fstat(1).st_size == written
    print("whole")
    assert os.fstat(1).st_size == written + len("half whole" + os.linesep)
    """
    assert run_gloo(1, code).check().stdout == "half whole\npassed\n"


def test_packages_are_found_where_the_tests_find_them(tmp_path: Path) -> None:
    """fairseq itself may be in a folder that PYTHONPATH alone names."""
    (tmp_path / "elsewhere.py").touch()
    code = "from tests.fairseq_cli import run_python; run_python('import elsewhere').check()"
    paths = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
    run_program([sys.executable, "-c", code], environment={"PYTHONPATH": paths}).check()


def runs(process: int) -> bool:
    """Whether a process is there and has not ended."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
