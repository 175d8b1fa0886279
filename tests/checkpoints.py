"""The weights that runs left behind, and how they compare."""

from pathlib import Path

import torch

from torchscale_fairseq.checkpoints.reading import load_checkpoint


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of checkpoint_last.pt in a run's --save-dir."""
    return load_checkpoint(run / "checkpoint_last.pt")["model"]


def assert_same_weights(one: Path, other: Path, atol: float) -> None:
    """Compare the last checkpoints of two runs.

    Args:
        one, other: their --save-dir.
        atol: largest difference between two weights.
    """
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=atol, rtol=0, msg=name)
