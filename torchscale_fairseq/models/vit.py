"""ViT: ``vit_magneto_base`` and others, for images of ordinary sizes."""

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchscale_fairseq.core.architectures.vit import ViTClassifier, resized_patch_positions
from torchscale_fairseq.core.config import ViTConfig
from torchscale_fairseq.core.ops.patch_embedding import Bands

from ._classifier import Classifier
from ._fits import IMAGES as FITTING_TASKS
from ._hubs import ImageHub
from ._presets import VISION
from ._registration import register_presets
from ._released import PretrainedOptions

FROM_TASK = ("img_size", "patch_size")
POSITIONS = "model.pos_embed"
TIMM_NAMES = (
    (r"^cls_token$", "patch_embed.cls_token"),
    (r"^norm\.", "fc_norm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".final_layer_norm."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.", ".ffn."),
)
HEAD = ("fc_norm.", "head.")
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class ViTModel(Classifier, ViTClassifier):
    """A ViT with a head that scores classes; each preset is a subclass. Released files have timm's names.

    Args:
        config: of the core.
        num_classes: scores.
    """

    config_class = ViTConfig
    hub = ImageHub
    fits = FITTING_TASKS
    kind = "a ViT"
    advice = "take the --arch, --patch-size and --pooling that it was made for"
    wrappers = ("module.", "model.")

    def __init__(self, config: ViTConfig, num_classes: int):
        ViTClassifier.__init__(self, config, num_classes)

    def forward(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Scores (batch, classes); arguments as for ``ViT.forward_patches``."""
        return self.forward_patches(patches)

    def extract_features(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Features (batch, tokens, width) instead of scores."""
        return self.model.forward_patches(patches)

    def own_names(self, released: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights by timm's names, or by this model's, by this model's names."""
        named = {renamed: part for name, value in released.items() for renamed, part in _own(name, value)}
        return {name if name.startswith(HEAD) else f"model.{name}": value for name, value in named.items()}

    def adapt(self, state_dict: dict[str, Any]) -> None:
        """Let a state dict for other classes or another size be loaded: the head stays as initialised, positions are
        interpolated."""
        super().adapt(state_dict)
        if POSITIONS in state_dict:
            config = self.model.config
            side = config.img_size // config.patch_size
            state_dict[POSITIONS] = resized_patch_positions(
                state_dict[POSITIONS], side, side, _has_class_token(state_dict[POSITIONS])
            )


def _has_class_token(positions: Tensor) -> bool:
    """Whether positions (1, tokens, width) are of a square of patches and one token more."""
    tokens = positions.size(1)
    return math.isqrt(tokens) ** 2 != tokens


def _own(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor by its own name in this model's body; timm has queries, keys and values in one."""
    for pattern, replacement in TIMM_NAMES:
        name = re.sub(pattern, replacement, name)
    before, joined, after = name.partition(".attn.qkv.")
    if not joined:
        return [(name, value)]
    parts = zip(PROJECTIONS, value.chunk(3), strict=True)
    return [(f"{before}.self_attn.{projection}.{after}", part) for projection, part in parts]


register_presets(ViTModel, VISION, ViTConfig, PretrainedOptions, FROM_TASK)
