"""Losses over fifty updates on a GPU equal those of stock's updates; in bf16 they are compiled and recorded."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.fairseq_cli import tiny_language_data
from tests.plugin.stock_updates import OPTIMIZERS, RELATIVE, assert_losses_of_stock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("precision", RELATIVE)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_are_those_of_stock(optimizer: str, precision: str, data: Path, tmp_path: Path) -> None:
    flags = ["--compile"] if precision == "bf16" else []
    assert_losses_of_stock(optimizer, precision, 50, data, tmp_path, *flags, device="cuda")
