"""Embeddings of tiles by a frozen model of timm, or one that torch.jit has saved."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.slides.files import optional_package

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels, for models that name no others."""


class TileEncoder:
    """A model, and the pixels that it expects: their mean, their standard deviation, and the side of an image.

    Args:
        name: of a timm model; or a file: TorchScript (``.pt``, ``.jit``).
        weights: a file of weights for a timm model; None: the pretrained ones of its name.
        device: where it computes.
        center_crop: cut the middle out of tiles that are larger than the model's images, instead of scaling them.

    Raises:
        InputError: timm is missing, the model cannot be built, or a file's model is to crop.
    """

    def __init__(self, name: str, weights: Path | None, device: str, *, center_crop: bool = False):
        self.device, self.center_crop = device, center_crop
        self.input_size: int | None = None
        """Side of the images that the model takes; None: it takes tiles of any size as they are."""
        mean, std = MEAN, STD
        if Path(name).is_file():
            if center_crop:
                raise InputError("--center-crop is for models of timm, which say how large their images are.")
            self.model: Any = torch.jit.load(name, map_location=device)
        else:
            self.model = _of_timm(name, weights)
            facts = self.model.pretrained_cfg
            mean, std = (facts.get(key, value) for key, value in (("mean", MEAN), ("std", STD)))
            if center_crop or facts.get("fixed_input_size"):
                self.input_size = facts["input_size"][-1]
        self.model = self.model.eval().to(device)
        self._mean, self._std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))

    @torch.no_grad()
    def __call__(self, tiles: list[Any]) -> Tensor:
        """RGB images of one size to features (tiles, values) in float32, on the CPU."""
        pixels = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).to(self.device)
        scaled = self._fitted(pixels.permute(0, 3, 1, 2).float() / 255)
        features: Tensor = self.model((scaled - self._mean) / self._std)
        return features.float().cpu()

    def _fitted(self, pixels: Tensor) -> Tensor:
        """(tiles, 3, side, side) with the side that the model takes."""
        side, wanted = pixels.size(-1), self.input_size
        if wanted is None or side == wanted:
            return pixels
        if self.center_crop and side > wanted:
            first = (side - wanted) // 2
            return pixels[..., first : first + wanted, first : first + wanted]
        return F.interpolate(pixels, (wanted, wanted), mode="bicubic", antialias=True).clamp(0, 1)


def _of_timm(name: str, weights: Path | None) -> Any:
    timm = optional_package("timm", "--encoder")
    options: dict[str, Any] = {"checkpoint_path": str(weights)} if weights else {"pretrained": True}
    try:
        return timm.create_model(name, num_classes=0, **options)
    except (RuntimeError, OSError) as error:
        cause = str(error).partition("\n")[0].rstrip(": ")
        source = f"the weights of --weights {weights}" if weights else "its pretrained weights"
        raise InputError(
            f"--encoder {name} cannot be built with {source} ({cause}); give a TorchScript file, or a name that "
            "timm.list_models() has, and weights of that model."
        ) from None
