"""Updates of a ViT replayed as CUDA graphs equal updates that Python starts kernel by kernel."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import run_processes
from tests.gpu.replays import TELLING
from tests.plugin.drawings import make_folders

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRAIN = ["--task", "image_classification", "--criterion", "image_classification", "--arch", "vit_magneto_tiny"]
TRAIN += ["--img-size", "32", "--patch-size", "8", "--encoder-layers", "2", "--encoder-embed-dim", "32"]
TRAIN += ["--encoder-ffn-embed-dim", "64", "--encoder-attention-heads", "2", "--batch-size", "4", "--lr", "1e-2"]
TRAIN += ["--optimizer", "sgd", "--max-update", "12", "--num-workers", "0", "--compile", "--label-smoothing", "0.1"]
TRAIN += ["--required-batch-size-multiple", "1", "--no-epoch-checkpoints", "--log-format", "simple"]
NEVER = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.training import trainer
trainer.can_record = lambda *_: False
"""


@pytest.mark.parametrize("freq", ["1", "2"])
def test_weights_equal_those_without_graphs(freq: str, tmp_path: Path) -> None:
    """The last batch of an epoch is smaller, and is not recorded."""
    data = make_folders(tmp_path / "data", train=5, valid=2)
    for name, before in (("recorded", TELLING), ("usual", TELLING + NEVER)):
        words = [data, *TRAIN, "--update-freq", freq, "--save-dir", tmp_path / name]
        done = run_processes(1, "train", words, before=before, timeout=300).check()
        assert (len(re.findall("replayed", done.output)) >= 4) == (name == "recorded")
    assert_same_weights(tmp_path / "recorded", tmp_path / "usual", 1e-4)
