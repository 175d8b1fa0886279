"""The contrastive loss of pairs, over the pairs of all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from ..parallel.exchange import gather_rows


def contrastive_losses(images: Tensor, texts: Tensor, scale: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The loss of each pair: the mean of the cross-entropies of its text among all texts and of its image among all
    images (CLIP, arXiv:2103.00020, fig. 3).

    Summed over the processes, losses and gradients are those of one process that has all pairs.

    Args:
        images, texts: (pairs, width), unit vectors of this process's pairs, whose number may differ between processes.
        scale: factor of their products.
        group: the processes; None for this one alone.

    Returns:
        (pairs,), in nats.
    """
    all_images, all_texts, first = images, texts, 0
    if group is not None:
        (all_images, first), (all_texts, _) = gather_rows(images, group), gather_rows(texts, group)
    own = torch.arange(first, first + images.size(0), device=images.device)
    of_images = F.cross_entropy(scale * images @ all_texts.T, own, reduction="none")
    of_texts = F.cross_entropy(scale * texts @ all_images.T, own, reduction="none")
    return (of_images + of_texts) / 2
