"""Pixels of patches as targets of masked image modelling."""

import torch.nn.functional as F
from torch import Tensor


def normalised(patches: Tensor) -> Tensor:
    """Each patch with mean 0 and deviation 1 (MAE, arXiv:2111.06377, sec. 4); a patch of one colour becomes 0.

    Args:
        patches: (..., values), seen as -1 to 1.
    """
    return F.layer_norm(patches, patches.shape[-1:], eps=1e-6)
