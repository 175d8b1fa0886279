"""Data shared with the tests of the plugin."""

from importlib.util import find_spec

from tests.plugin.conftest import shared_folder, translation_data

collect_ignore_glob = [] if find_spec("fairseq") else ["test_*.py"]
__all__ = ["shared_folder", "translation_data"]
