"""RandAugment and random erasing of whole training images, by torchvision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.patch_embedding import whole_images
from torchscale_fairseq.data.images.patches import as_patches

GREY = 127
"""Value of erased pixels: the middle of the range, which models see as 0."""
LARGEST_MAGNITUDE = 30


@dataclass(frozen=True)
class ImageTransform:
    """Transforms whose draws depend on a seed alone, whatever else draws from torch's generator.

    Args:
        operations: of RandAugment (arXiv:1909.13719), one after the other; 0: off.
        magnitude: of RandAugment, from 0 to 30.
        erasing: probability that a rectangle of the image is erased (arXiv:1708.04896).
    """

    operations: int = 0
    magnitude: int = 9
    erasing: float = 0.0

    def __call__(self, patches: Tensor, seed: int) -> Tensor:
        """Transform an image.

        Args:
            patches: (patches, 3, patch_size, patch_size) of uint8, of a square image, row by row.
            seed: of all draws.

        Returns:
            Patches of the transformed image, shaped like the argument.

        Raises:
            ModuleNotFoundError: torchvision is not installed.
        """
        image = whole_images(patches[None], patches.device)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for transform in self._transforms:
                image = transform(image)
        return as_patches(image, patches.size(-1))

    @cached_property
    def _transforms(self) -> list[Callable[[Tensor], Tensor]]:
        v2 = load_transforms()
        augment = [v2.RandAugment(self.operations, self.magnitude)] if self.operations else []
        return augment + ([v2.RandomErasing(self.erasing, value=GREY)] if self.erasing else [])


def load_transforms() -> Any:
    """``torchvision.transforms.v2``.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        InputError: it was built for another torch.
    """
    try:
        from torchvision.transforms import v2
    except ModuleNotFoundError:
        needed = f"--rand-augment and --random-erasing need torchvision: {_installation()}"
        raise ModuleNotFoundError(needed, name="torchvision") from None
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"--rand-augment and --random-erasing need a torchvision that was built for torch {torch.__version__}, and "
            f"the one that is installed was not ({error}): pip uninstall torchvision, then {_installation()}"
        ) from error
    return v2


def _installation() -> str:
    """A command for the torchvision of this torch, which pip would replace if it were not named."""
    version, _, build = torch.__version__.partition("+")
    source = f" (with the --index-url that your {build} build of torch came from)" if build else ""
    return f"pip install torchvision torch=={version}{source}"
