"""The core's model of a checkpoint, with options of how it is computed."""

import dataclasses
from typing import Any

from torch import nn

from torchscale_fairseq.core.saving import build
from torchscale_fairseq.tools.convert.safetensors_folder import Parts

EAGER = {"compile": False, "checkpoint_activations": False}
PLAIN = {**EAGER, "flash_attention": False, "attention_backend": "naive", "retention_backend": "torch"}
"""Values of options that decide how a model is computed, and not what; naive attention is made of operators that every
runtime has."""


def eager_model(parts: Parts, **options: Any) -> nn.Module:
    """The model of a checkpoint in evaluation mode and in the dtype of its tensors.

    Args:
        parts: of the checkpoint.
        options: values that replace those of the config, as far as it has the options.

    Raises:
        InputError: an embedding or a head is missing.
    """
    names = {field.name for field in dataclasses.fields(parts.config)}
    replaced = {name: value for name, value in (EAGER | options).items() if name in names}
    model: nn.Module = build(dataclasses.replace(parts.config, **replaced), parts.tensors)
    model.to(next(t.dtype for t in parts.tensors.values() if t.is_floating_point()))
    model.load_state_dict(parts.tensors)
    return model.eval()


def plain_model(parts: Parts) -> nn.Module:
    """The model of a checkpoint in float32, by operators that every runtime has."""
    return eager_model(parts, **PLAIN).float()
