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
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    apart = {name: float((value - second[name]).abs().max()) for name, value in first.items() if value.numel()}
    wrong = sorted((name for name, most in apart.items() if not most <= atol), key=apart.__getitem__, reverse=True)
    assert not wrong, f"{len(wrong)} of {len(apart)} differ by more than {atol}: {[(n, apart[n]) for n in wrong[:5]]}"
