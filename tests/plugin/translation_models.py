"""Training translation models through fairseq's command."""

from pathlib import Path

from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq
from tests.plugin.shrunk import shrunk

ARCH = "mt_deepnorm_small"
COMMON = ["--task", "translation", "--cpu", "--share-all-embeddings", *FEW_UPDATES]


def train(data: Path, save_dir: Path, *flags: str, arch: str = ARCH) -> Finished:
    arguments = [data, *shrunk(arch), *COMMON, "--save-dir", save_dir, "--dropout", "0", *flags]
    return run_fairseq("train", arguments)
