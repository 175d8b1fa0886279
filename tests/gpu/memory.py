"""Memory of a GPU that holds NaN, so that what a kernel leaves unwritten shows."""

import torch


def poison() -> None:
    """Fill the memory that is handed out next with NaN."""
    dirty = [torch.full((1 << size,), float("nan"), device="cuda", dtype=torch.bfloat16) for size in range(8, 24)]
    del dirty
