"""scripts/name_interpreter.py: a program of fairseq, run by a Python without fairseq, says so."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.name_interpreter import name_interpreter

CONSOLE_SCRIPT = f"""#!{sys.executable}
# -*- coding: utf-8 -*-
import sys
from fairseq_cli.train import cli_main
if __name__ == '__main__':
    sys.exit(cli_main())
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "fairseq-train"
    path.write_text(CONSOLE_SCRIPT)
    name_interpreter(path)
    return path


def test_other_python_is_named(program: Path) -> None:
    bare = [sys.executable, "-I", "-S", str(program)]  # as another environment: without site-packages
    done = subprocess.run(bare, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"fairseq-train: {sys.executable} runs it, which has no fairseq: the program ")
    assert f"{program.parent}/python -m torch.distributed.run --no-python fairseq-train ..." in done.stderr


def test_done_once_and_runs_as_before(program: Path) -> None:
    text = program.read_text()
    name_interpreter(program)
    assert program.read_text() == text and text.startswith(f"#!{sys.executable}\n")
    folder = program.parent / "fairseq_cli"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text("def cli_main():\n    print('trains')\n")
    done = subprocess.run([shutil.which("env"), "-i", sys.executable, "-S", program], capture_output=True, text=True)
    assert done.stdout == "trains\n", done.stderr
