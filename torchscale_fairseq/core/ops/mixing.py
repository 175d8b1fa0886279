"""Mixup and CutMix: each image of a batch is mixed with a partner, and its class in the same proportion.

The partners are the images of the batch in reverse order. All draws come from torch's CPU generator.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Beta


def mix(patches: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix a batch by Mixup or CutMix, each with probability one half if both are on.

    Args:
        patches: (batch, patches, channels, patch_size, patch_size), uint8, of square images.
        targets: (batch, classes), probabilities.
        mixup, cutmix: parameter of the symmetric Beta distribution of an image's own share; 0: off. One must be on.

    Returns:
        Mixed patches and targets, shaped like the arguments.
    """
    cuts = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cuts else mixup
    share = float(Beta(alpha, alpha).sample())
    mixed, share = cut(patches, share, torch.rand(2)) if cuts else (blend(patches, share), share)
    return mixed, share * targets + (1 - share) * targets.flip(0)


def blend(patches: Tensor, share: float) -> Tensor:
    """Mixup (arXiv:1710.09412): ``share`` times each image plus ``1 - share`` times its partner, rounded."""
    own = patches.float()
    return (share * own + (1 - share) * own.flip(0)).round().to(patches.dtype)


def cut(patches: Tensor, share: float, centre: Tensor) -> tuple[Tensor, float]:
    """CutMix (arXiv:1905.04899): replace a rectangle of each image by its partner's.

    Args:
        patches: (batch, patches, channels, patch_size, patch_size) of square images.
        share: fraction of the area outside the rectangle, if the rectangle lies inside the image.
        centre: (2,), centre of the rectangle as fractions of height and width.

    Returns:
        Patches shaped like the argument, and the fraction of the area that is not replaced.
    """
    size = patches.size(-1)
    cells = math.isqrt(patches.size(1))
    pixels = cells * size
    half = pixels * math.sqrt(1 - share) / 2
    places = torch.arange(pixels) + 0.5
    inside = [(places - middle).abs() < half for middle in (centre * pixels).tolist()]
    mask = inside[0][:, None] & inside[1]
    in_patches = mask.view(cells, size, cells, size).transpose(1, 2).reshape(cells**2, 1, size, size)
    mixed = torch.where(in_patches.to(patches.device), patches.flip(0), patches)
    return mixed, 1 - float(mask.double().mean())
