"""Data and checkpoints that the tests of the plugin share."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fairseq_cli import (
    FEW_UPDATES,
    TINY_LANGUAGE_MODEL,
    TINY_TRANSFORMER,
    run_fairseq,
    tiny_language_data,
    tiny_translation_data,
)

collect_ignore_glob = [] if find_spec("fairseq") else ["test_*.py"]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def translation_data(shared_folder: Path) -> Path:
    return tiny_translation_data(shared_folder)


@pytest.fixture(scope="session")
def language_data(shared_folder: Path) -> Path:
    return tiny_language_data(shared_folder)


@pytest.fixture(scope="session")
def stock_checkpoint(shared_folder: Path, translation_data: Path) -> Path:
    """A ``transformer``, whose options are an argparse namespace, trained for four updates on stock fairseq with
    BLEU measured in validation."""
    folder = shared_folder / "stock"
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1}']
    if not folder.exists():
        arguments = [translation_data, *TINY_TRANSFORMER, *FEW_UPDATES, *bleu, "--save-dir", folder]
        run_fairseq("train", arguments, plugin=False).check()
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def language_checkpoint(shared_folder: Path, language_data: Path) -> Path:
    """A ``transformer_lm``, whose options are a dataclass, trained for four updates on stock fairseq."""
    folder = shared_folder / "stock_language"
    if not folder.exists():
        arguments = [language_data, *TINY_LANGUAGE_MODEL, *FEW_UPDATES, "--save-dir", folder]
        run_fairseq("train", arguments, plugin=False).check()
    return folder / "checkpoint_last.pt"
