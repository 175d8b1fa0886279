"""Slides in a scanner's format: pyramids in TIFF, of tissue with a small lesion, whose place decides the class."""

import csv
from pathlib import Path

import numpy as np
import torch

SIDE, TILE = 512, 32
TISSUE, LESION, GLASS = (220, 120, 170), (90, 30, 140), (245, 245, 245)


def draw_scans(folder: Path, count: int) -> Path:
    """So many slides of SIDE pixels, glass around tissue of 3/4 of the side, and slides.csv beside them."""
    pyvips = __import__("pyvips")
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        pixels = np.full((SIDE, SIDE, 3), GLASS, dtype=np.int16)
        edge = SIDE // 8
        pixels[edge:-edge, edge:-edge] = TISSUE
        lower = number % 2
        row = rng.integers(3, 7) if not lower else rng.integers(9, 13)
        column = rng.integers(3, 13)
        pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = LESION
        noisy = (pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)
        image = pyvips.Image.new_from_memory(noisy.tobytes(), SIDE, SIDE, 3, "uchar").copy(xres=2000, yres=2000)
        image.tiffsave(
            folder / f"s{number}.tiff", tile=True, pyramid=True, tile_width=64, tile_height=64, compression="none"
        )
        split = "train" if number % 4 < 2 else "valid"
        rows.append({"slide": f"s{number}", "split": split, "label": ("upper", "lower")[lower]})
    with (folder / "slides.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


class Colours(torch.nn.Module):
    """The mean of each channel, as a tiny encoder of tiles."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x.mean((2, 3)), x.std((2, 3))), 1)
