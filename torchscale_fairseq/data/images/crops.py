"""Random crops of an image: cut out, scaled, coloured, blurred, solarized and turned."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchscale_fairseq.data.images.views import Augmentation

SIGMAS = (0.1, 2.0)
"""Smallest and largest standard deviation of the blur, in pixels (DINO, arXiv:2104.14294, after BYOL, arXiv:2006.07733,
app. B)."""
SOLARIZED_FROM = 128
"""The darkest value that solarization inverts."""


@dataclass(frozen=True)
class CropKind:
    """How crops of one kind are drawn."""

    size: int
    """Pixels of a side."""
    augmentation: Augmentation
    """Which part of the image, from which side, in which colours."""
    gray_prob: float = 0.0
    blur_prob: float = 0.0
    solarize_prob: float = 0.0

    @property
    def image_size(self) -> int:
        """Pixels of a side of the image from which the smallest crop is cut without enlarging it."""
        return math.ceil(self.size / math.sqrt(self.augmentation.min_crop))

    def draw(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """A crop, (3, size, size) of uint8; the same numbers are drawn whichever options are on.

        Args:
            image: (3, side, side) of uint8.
            rng: decides the crop.
        """
        view = self.augmentation.draw(rng)
        is_gray, is_blurred, is_solarized = rng.random(3) < (self.gray_prob, self.blur_prob, self.solarize_prob)
        sigma = rng.uniform(*SIGMAS)
        if is_gray:
            view = dataclasses.replace(view, saturation=0.0)
        part, size = view.cut(image)[None].float(), (self.size, self.size)
        pixels = F.interpolate(part, size, mode="bilinear", antialias=True, align_corners=False)[0]
        pixels = view.coloured(pixels)
        if is_blurred:
            pixels = blurred(pixels, sigma)
        pixels = pixels.round().clamp(0, 255)
        if is_solarized:
            pixels = torch.where(pixels >= SOLARIZED_FROM, 255 - pixels, pixels)
        return view.turned(pixels.to(torch.uint8))


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of (channels, height, width), whose edges are repeated outwards.

    Args:
        pixels: in float32.
        sigma: standard deviation in pixels.
    """
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).to(pixels.dtype)
    padded = F.pad(pixels[:, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))[:, 0]
