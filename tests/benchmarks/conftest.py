"""The benchmarks are scripts that find each other in their own folder, and set torch's threads."""

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.fairseq_cli import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
