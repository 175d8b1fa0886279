"""A small corpus in TorchScale's format, which the tests of the data share."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.data.corpora import made_corpus

collect_ignore_glob = [] if find_spec("fairseq") and find_spec("sentencepiece") else ["test_*.py"]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to; its index is there from the first test on."""
    return made_corpus(tmp_path_factory.mktemp("corpus") / "data")
