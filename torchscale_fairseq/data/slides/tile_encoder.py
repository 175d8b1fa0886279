"""Embeddings of tiles by a frozen model of timm, or one that torch.jit has saved."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.slides.files import optional_package

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels, for models that name no others."""


class TileEncoder:
    """A model, and the mean and standard deviation of pixels that it expects.

    Args:
        name: of a timm model; or a file: TorchScript (``.pt``, ``.jit``).
        weights: a file of weights for a timm model; None: the pretrained ones of its name.
        device: where it computes.

    Raises:
        InputError: timm is missing, or there is no such model.
    """

    def __init__(self, name: str, weights: Path | None, device: str):
        self.device = device
        mean, std = MEAN, STD
        if Path(name).is_file():
            self.model: Any = torch.jit.load(name, map_location=device)
        else:
            timm = optional_package("timm", "--encoder")
            try:
                options: dict[str, Any] = {"checkpoint_path": str(weights)} if weights else {"pretrained": True}
                self.model = timm.create_model(name, num_classes=0, **options)
            except RuntimeError as error:
                raise InputError(f"--encoder {name} is neither a file nor a model of timm: {error}") from None
            mean, std = (self.model.pretrained_cfg.get(key, value) for key, value in (("mean", MEAN), ("std", STD)))
        self.model = self.model.eval().to(device)
        self._mean, self._std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))

    @torch.no_grad()
    def __call__(self, tiles: list[Any]) -> Tensor:
        """RGB images of one size to features (tiles, values) in float32, on the CPU."""
        pixels = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).to(self.device)
        scaled = pixels.permute(0, 3, 1, 2).float() / 255
        features: Tensor = self.model((scaled - self._mean) / self._std)
        return features.float().cpu()
