"""Data shared with the tests of the plugin."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.plugin.conftest import shared_folder, translation_data

collect_ignore_glob = [] if find_spec("fairseq") else ["test_*.py"]
__all__ = ["shared_folder", "translation_data"]


@pytest.fixture(scope="session")
def data(translation_data: Path) -> Path:
    """For translation models; modules that train others have a fixture of this name."""
    return translation_data
