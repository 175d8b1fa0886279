"""A training of seven updates, which tests interrupt."""

from pathlib import Path

from tests.fairseq_cli import FEW_UPDATES
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.checkpoints.reading import load_checkpoint

UPDATES = 7


def words(data: Path, folder: Path) -> list[object]:
    """Five updates an epoch with two processes, nine with one; validation after the fourth."""
    arguments = [data, *shrunk("gpt_magneto_small"), *FEW_UPDATES, "--task", "language_modeling", "--num-workers", "1"]
    arguments += ["--tokens-per-sample", "16", "--batch-size", "4", "--max-update", UPDATES, "--save-dir", folder]
    return [*arguments, "--validate-interval-updates", "4", "--no-epoch-checkpoints", "--lr", "0.001", "--cpu"]


def updates(folder: Path) -> int:
    return int(load_checkpoint(folder / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"])
