"""The parity tests take another set of vectors as they take the official one."""

import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.fairseq_cli import run_program

WRITE_AND_TEST = """
import os, pathlib, sys, pytest
from tests.parity import other_vectors
other_vectors.write(pathlib.Path(sys.argv[1]))
os.environ["PARITY_DIR"] = sys.argv[1]
sys.exit(pytest.main(["-q", "tests/parity"]))
"""


@pytest.mark.skipif("PARITY_DIR" in os.environ, reason="it is about such a set")
def test_other_shapes_and_options(tmp_path: Path) -> None:
    done = run_program([sys.executable, "-c", WRITE_AND_TEST, tmp_path]).check()
    written = len(list(tmp_path.glob("*.safetensors")))
    assert written > 10 and int(re.search(r"(\d+) passed", done.stdout)[1]) > written
