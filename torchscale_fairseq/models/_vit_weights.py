"""Weights of plain ViTs by the names that timm, BEiT and this package give them.

A key projection without bias has one of zeros, and layer scale (``gamma_1``, or ``ls1.gamma``) is multiplied into the
projection before it: the values are those of the released model.
"""

import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.core.architectures.vit import resized_patch_positions
from torchscale_fairseq.core.config import ViTConfig

from ._released import begin_from, read_released

logger = logging.getLogger(__name__)

BODY = "model."
POSITIONS = f"{BODY}pos_embed"
MASK_TOKEN = f"{BODY}patch_embed.mask_token"
WRAPPERS = ("module.", "model.")
ADVICE = "take the --arch, --patch-size and --pooling that it was made for"
SCALE = ".scale"
"""The end of a vector's name that multiplies the outputs of a linear layer."""
NAMES = (
    (r"^(cls|mask)_token$", r"patch_embed.\1_token"),
    (r"^norm\.", "fc_norm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".final_layer_norm."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.attn\.([qv])_bias$", r".self_attn.\1_proj.bias"),
    (r"\.(gamma_1|ls1\.gamma)$", f".self_attn.out_proj{SCALE}"),
    (r"\.(gamma_2|ls2\.gamma)$", f".ffn.fc2{SCALE}"),
    (r"\.mlp\.", ".ffn."),
)
OUTSIDE = ("fc_norm.", "head.", "lm_head.", "patch_norm.", "patch_head.")
"""Beginnings of names that are not of the body."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
OF_THE_ENCODER = re.compile(r"blocks\.|encoder\.|rel_pos_bias\.|norm_pre\.|(reg|dist)_token$")
"""Names of parts that change an encoder's features."""
INSTEAD = {
    "relative_position_bias_table": "its positions are learned ones alone",
    "rel_pos_bias": "its positions are learned ones alone",
}


class BeginsFromViT(nn.Module):
    """A mixin of models that have a ViT as ``model``."""

    def adapt(self, state_dict: dict[str, Any]) -> None:
        """Let weights of another head or size be loaded."""
        raise NotImplementedError

    def load_weights(self, path: str | Path, branch: str = "teacher") -> None:
        """Begin from a file of released weights, or from a checkpoint, and report which tensors are not used or not
        there. The head is taken if it predicts as much as this model's.

        Args:
            path: of the file.
            branch: teacher or student; which of them is taken from a file that has both.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not of this architecture.
        """
        released = read_released(path, WRAPPERS, branch)
        _refuse_other_parts(self, released, path)
        given = own_names(released)
        if "cls_token" in released and "fc_norm.weight" in released:
            logger.warning("%s scores the mean of patches next to a class token: its head is left out", path)
            given = {name: value for name, value in given.items() if not name.startswith(OUTSIDE)}
        self.adapt(given)
        begin_from(self, given, path, kind="a ViT", advice=ADVICE)


def own_names(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by timm's names, BEiT's or this package's, by this package's names."""
    named = {renamed: part for name, value in released.items() for renamed, part in _own(name, value)}
    for name in [name for name in named if name.endswith(SCALE)]:
        _multiply(named, name)
    for name in [name for name in named if name.endswith("q_proj.bias")]:
        named.setdefault(name.replace("q_proj", "k_proj"), torch.zeros_like(named[name]))
    return {name if name.startswith(OUTSIDE) else f"{BODY}{name}": value for name, value in named.items()}


def resize_positions(state_dict: dict[str, Any], config: ViTConfig) -> None:
    """Interpolate the positions of a state dict, if it has any, for images of the config's img_size."""
    if POSITIONS in state_dict:
        side = config.img_size // config.patch_size
        positions = state_dict[POSITIONS]
        state_dict[POSITIONS] = resized_patch_positions(positions, side, side, _has_class_token(positions))


def _has_class_token(positions: Tensor) -> bool:
    """Whether positions (1, tokens, width) are of a square of patches and one token more."""
    tokens = positions.size(1)
    return math.isqrt(tokens) ** 2 != tokens


def _own(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor by its own name in this package; timm has queries, keys and values in one."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    before, joined, after = name.partition(".attn.qkv.")
    if not joined:
        return [(name, value)]
    parts = zip(PROJECTIONS, value.chunk(3), strict=True)
    return [(f"{before}.self_attn.{projection}.{after}", part) for projection, part in parts]


def _multiply(named: dict[str, Tensor], scale: str) -> None:
    """Multiply a scale of outputs into the weight and the bias that it belongs to."""
    layer, factor = scale.removesuffix(SCALE), named.pop(scale)
    named[f"{layer}.weight"] = named[f"{layer}.weight"] * factor[:, None]
    named[f"{layer}.bias"] = named[f"{layer}.bias"] * factor


def _refuse_other_parts(model: nn.Module, released: dict[str, Tensor], path: str | Path) -> None:
    """Raise a CheckpointError if the encoder of a file has a part that the model lacks."""
    own = model.state_dict()
    for name, value in released.items():
        renamed = {renamed for renamed, _ in _own(name, value)}
        if OF_THE_ENCODER.match(name) and not any(part.endswith(SCALE) or BODY + part in own for part in renamed):
            reason = next((text for part, text in INSTEAD.items() if part in name), "it is of another architecture")
            raise CheckpointError(f"--pretrained {path} has {name}, for which this model has no place: {reason}.")
