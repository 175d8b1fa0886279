"""The benchmarks are scripts that find each other in their own folder."""

import sys

from tests.fairseq_cli import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
