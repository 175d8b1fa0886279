"""How much each tile of a slide adds to a score or to the slide's embedding, and a picture of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.core.files import write_atomically

CELL = 8
"""Pixels of a tile's side in a picture."""
NO_TILE = (230, 230, 230)


def tile_attribution(model: Any, inputs: dict[str, Any], score: Callable[[Tensor], Tensor]) -> Tensor:
    """Features times the gradient of a score, summed over the features of each tile.

    Args:
        model: takes the inputs.
        inputs: of one slide.
        score: of the model's scores (scores,), a number.

    Returns:
        (tiles,), positive where a tile raises the score.
    """
    features = inputs["features"].detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(model(**{**inputs, "features": features})[0]), features)
    return (gradient * features).sum(-1)[0].detach().cpu()


def attention_rollout(encoder: Any, inputs: dict[str, Any]) -> Tensor:
    """The share that each tile has in the slide's embedding if only attention and residual connections moved tokens.

    "Quantifying Attention Flow in Transformers", arXiv:2005.00928, sec. 3: (A + I) / 2 of each layer, where A is the
    attention averaged over the heads, multiplied from the last layer to the first. No A is written out, so that memory
    is linear in the tiles.

    Args:
        encoder: a ``SlideEncoder``.
        inputs: its arguments, of one slide.

    Returns:
        (tiles,), 0 or more; with the class token's own share they add up to 1 at most.
    """
    layers, seen = encoder.encoder.layers, []
    hooks = [
        layer.self_attn.register_forward_hook(lambda module, args, _: seen.append((module, *args[:2])))
        for layer in layers
    ]
    try:
        with torch.no_grad():
            encoder(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    pooled = _pooled_tokens(seen[0][1], encoder.config.global_pool)
    chosen = encoder.config.chosen_layers or (len(layers),)
    share = torch.zeros_like(pooled)
    for depth in range(len(layers), 0, -1):
        share = share + chosen.count(depth) / len(chosen) * pooled
        module, x, attention = seen[depth - 1]
        share = (share + module.received(x, share, attention)) / 2
    return share[0, 1:].cpu()


def _pooled_tokens(x: Tensor, global_pool: bool) -> Tensor:
    """(batch, seq), what an embedding is the weighted sum of: the class token, which is first, or the tiles."""
    weight = x.new_zeros(x.shape[:2])
    if global_pool:
        weight[:, 1:] = 1 / (x.size(1) - 1)
    else:
        weight[:, 0] = 1
    return weight


def draw(attribution: Tensor, coords: Tensor, tile_size: int, path: Path) -> None:
    """Write a PNG of the slide's grid: red tiles raise the score, blue ones lower it, grey has no tile.

    Args:
        attribution: (tiles,).
        coords: (tiles, 2), pixels.
        tile_size: side of a tile in pixels.
        path: of the picture.
    """
    from PIL import Image

    cells = (coords // tile_size).numpy()
    cells = cells - cells.min(0)
    picture = np.full((*(cells.max(0)[::-1] + 1), 3), NO_TILE, dtype=np.uint8)
    share = (attribution / attribution.abs().max().clamp_min(1e-12)).numpy()[:, None]
    pale = 255 * (1 - np.abs(share))
    red_or_blue = np.where(share > 0, np.hstack([0 * pale + 255, pale, pale]), np.hstack([pale, pale, 0 * pale + 255]))
    picture[cells[:, 1], cells[:, 0]] = red_or_blue.round().astype(np.uint8)
    with write_atomically(path) as scratch:
        Image.fromarray(picture.repeat(CELL, 0).repeat(CELL, 1)).save(scratch, format="PNG")
