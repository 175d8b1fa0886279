"""Fixed positions of the cells of a grid, from sines and cosines of both axes."""

import torch
from torch import Tensor

BASE = 10000.0


def axis_positions(cells: int, width: int) -> Tensor:
    """Sines, then cosines, of each index of an axis, at geometrically falling frequencies.

    Args:
        cells: length of the axis.
        width: of a vector; even.

    Returns:
        (cells, width), float32, computed in float64.
    """
    half = width // 2
    frequencies = BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(cells, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), 1).float()


def grid_positions(cells: Tensor, axis: Tensor) -> Tensor:
    """The vectors of cells of a square grid: the first half is that of the second index, the second half that of the
    first, as in MAE (arXiv:2111.06377) and Prov-GigaPath.

    Args:
        cells: (..., 2), indices on both axes.
        axis: (cells, width / 2), of ``axis_positions``.

    Returns:
        (..., width).
    """
    return torch.cat((axis[cells[..., 1]], axis[cells[..., 0]]), -1)
