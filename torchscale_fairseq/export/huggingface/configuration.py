"""The configuration of an exported model, config.json."""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from torchscale_fairseq.core.saving import CONFIGS, build


class CoreConfig(PretrainedConfig):
    """Options of a model of the core, and of transformers.

    Args:
        core_config: class of the core's config, such as DecoderConfig.
        core_options: its options.
        core_shapes: shapes of the tensors from which vocabularies, classes and heads are read, by their names in the
            core's state dict.
        router_aux_loss_coef: weight of the experts' balance loss, a mean over layers, in the loss of training.
    """

    model_type = "torchscale_fairseq"
    core_config: str = "DecoderConfig"
    core_options: dict[str, Any] | None = None
    core_shapes: dict[str, list[int]] | None = None
    router_aux_loss_coef: float = 0.01

    def build_core(self) -> nn.Module:
        """A model of the core with fresh values, in float32 on the CPU."""
        config = CONFIGS[self.core_config](**(self.core_options or {}))
        shapes = (self.core_shapes or {}).items()
        return build(config, {name: torch.empty(shape, device="meta") for name, shape in shapes})
