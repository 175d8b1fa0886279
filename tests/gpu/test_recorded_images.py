"""Updates of a ViT replayed as CUDA graphs equal updates that Python starts kernel by kernel."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import run_processes
from tests.gpu.devices import visible
from tests.gpu.replays import TELLING
from tests.image_updates import image_words

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NEVER = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.training import trainer
trainer.can_record = lambda *_: False
"""


def test_weights_equal_those_without_graphs(tmp_path: Path) -> None:
    """Both batches of an update are recorded, and the smaller one of an epoch is not."""
    words = [*image_words(tmp_path / "data"), "--compile", "--update-freq", "2"]
    for name, before in (("recorded", TELLING), ("usual", TELLING + NEVER)):
        given = [*words, "--save-dir", tmp_path / name]
        done = run_processes(1, "train", given, before=before, environment=visible(1), timeout=120).check()
        replays = done.output.count("replayed")
        assert (replays >= 8) == (name == "recorded"), f"{name}: {replays} replays\n{done.output[-5000:]}"
    assert_same_weights(tmp_path / "recorded", tmp_path / "usual", 1e-4)
