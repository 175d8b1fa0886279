"""The core's model of a checkpoint for export: in float32, on the CPU, by torch's own operators."""

import dataclasses

from torch import nn

from torchscale_fairseq.core.saving import build
from torchscale_fairseq.tools.convert.safetensors_folder import Parts

PLAIN = {
    "compile": False,
    "checkpoint_activations": False,
    "flash_attention": False,
    "attention_backend": "naive",
    "retention_backend": "torch",
}
"""Values of options that decide how a model is computed, and not what; naive attention is made of operators that every
runtime has."""


def plain_model(parts: Parts) -> nn.Module:
    """The model of a checkpoint in evaluation mode.

    Raises:
        InputError: an embedding or a head is missing.
    """
    names = {field.name for field in dataclasses.fields(parts.config)}
    config = dataclasses.replace(parts.config, **{name: value for name, value in PLAIN.items() if name in names})
    model: nn.Module = build(config, parts.tensors)
    model.load_state_dict(parts.tensors)
    return model.float().eval()
