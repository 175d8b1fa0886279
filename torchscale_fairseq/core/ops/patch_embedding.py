"""A linear map of an image's patches, some at a time, so that no more of the image is held."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Bands = Iterable[tuple[Tensor, Tensor]]
"""Parts of an image, each time it is iterated over: positions (patches,) in the result, and patches (patches,
channels, patch_size, patch_size) of uint8."""
VALUES_AT_ONCE = {"cpu": 2**18}
"""Number of values of a tensor, which are held as floats. A CPU is twice as fast with tensors that fit its caches;
others get 2 ** 24."""


def embed_patches(patches: Tensor | Sequence[Bands], length: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Map patches of pixels 0 to 255, seen as -1 to 1.

    For the gradient of the weight, patches are read once more instead of being kept.

    Args:
        patches: (batch, patches, channels, patch_size, patch_size) of uint8, or parts of each image in turn.
        length: of the result, at least the number of patches.
        weight: (width, channels, patch_size, patch_size).
        bias: (width,).

    Returns:
        (batch, length, width), zero where there is no patch.
    """
    result: Tensor = _Embedded.apply(weight, bias, patches, length)  # type: ignore[no-untyped-call]
    return result


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, patches: Tensor | Sequence[Bands], length: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.patches = patches
        result = weight.new_zeros(len(patches), length, weight.size(0))
        matrix = weight.flatten(1).T
        for row, bands in zip(result, patches, strict=True):
            for positions, pixels in _bands(bands, weight):
                row[positions] = torch.addmm(bias, pixels, matrix)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        exact = torch.promote_types(weight.dtype, torch.float32)
        of_weight = weight.new_zeros(weight.size(0), weight[0].numel(), dtype=exact)
        of_bias = weight.new_zeros(weight.size(0), dtype=exact)
        for row, bands in zip(gradient, ctx.patches, strict=True):
            for positions, pixels in _bands(bands, weight):
                own = row[positions]
                of_weight += own.T @ pixels
                of_bias += own.sum(0, dtype=exact)
        return of_weight.view(weight.shape).to(weight.dtype), of_bias.to(weight.dtype), None, None


def _bands(bands: Tensor | Bands, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions, and pixels as (patches, channels * patch_size ** 2)."""
    for positions, patches in _parts(bands) if isinstance(bands, Tensor) else bands:
        yield positions.to(like.device), patches.to(like.device).to(like.dtype).flatten(1).div_(127.5).sub_(1.0)


def _parts(patches: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    positions = torch.arange(len(patches), device=patches.device)
    count = max(1, VALUES_AT_ONCE.get(patches.device.type, 2**24) // patches[0].numel()) if len(patches) else 1
    return zip(positions.split(count), patches.split(count), strict=True)


def whole_images(patches: Tensor | Sequence[Bands], device: torch.device) -> Tensor:
    """Put images together again, for models that read them whole.

    Args:
        patches: all patches of square images, as for ``embed_patches``.
        device: of the result.

    Returns:
        (batch, channels, height, width), of the patches' dtype.
    """
    if not isinstance(patches, Tensor):
        patches = torch.stack([_in_order(bands) for bands in patches])
    side = round(patches.size(1) ** 0.5)
    grid = patches.to(device).unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)
    return grid.flatten(4, 5).flatten(2, 3)


def _in_order(bands: Bands) -> Tensor:
    positions, patches = zip(*bands, strict=True)
    return torch.cat(patches)[torch.cat(positions).argsort()]
