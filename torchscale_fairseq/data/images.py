"""Image files to tensors."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.data.problems import DataError


def load_image(path: Path, size: int) -> Tensor:
    """An image's largest square around its centre, scaled.

    Args:
        path: any format that Pillow reads.
        size: pixels of a side.

    Returns:
        (3, size, size), float32 in [-1, 1].

    Raises:
        DataError: the file is missing or is not an image.
        ModuleNotFoundError: pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "images need Pillow; install it with pip install torchscale-fairseq[vision].", name="PIL"
        ) from None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))  # lets JPEGs be decoded at a fraction of their size
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that can be read: {error}.") from None
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32))
    return pixels.permute(2, 0, 1) / 127.5 - 1.0
