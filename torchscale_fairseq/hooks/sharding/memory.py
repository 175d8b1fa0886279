"""How much memory of a device a model in training takes: for the table of docs/scaling.md and the check of a run."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.flops import Load, training_flops
from torchscale_fairseq.core.parallel.fully_sharded import LAYERS

BYTES_PER_PARAMETER = 16
"""Bytes per value of a slice: parameter, gradient and two states of Adam, each in float32."""
BYTES_PER_ACTIVATION = 34
"""Kept for the backward pass, per token, layer and channel, in half precision, without the scores of attention, which
fused kernels compute again (arXiv:2205.05198, sec. 4.1)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    slices: float
    """Parameters, gradients and optimizer states."""
    gathered: float
    """Parameters of what is computing and what computes next, and gradients before they are summed."""
    activations: float = 0.0
    """Bytes of one batch."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.slices + self.gathered + self.activations


def sharded_memory(
    parameters: float,
    *,
    per_layer: float,
    processes: int,
    compute_bytes: int = 2,
    tokens: int = 0,
    width: int = 0,
    layers: int = 0,
    recompute: bool = True,
) -> Memory:
    """Memory of a fully sharded model with Adam.

    Args:
        parameters: of the model.
        per_layer: parameters of its largest layer.
        processes: that hold one copy together.
        compute_bytes: of a gathered parameter: 2 with --bf16, else 4.
        tokens: of a batch, per process.
        width, layers: of the model.
        recompute: --checkpoint-activations.
    """
    outside = max(parameters - layers * per_layer, 0) if layers else 0
    # two layers, the one computing and the next; gradients of one; the rest stays gathered, and has gradients
    gathered = compute_bytes * (3 * per_layer + 2 * outside)
    at_once = 1 if recompute else layers
    kept = tokens * width * (2 * layers if recompute else 0)
    activations = kept + tokens * width * BYTES_PER_ACTIVATION * at_once
    return Memory(BYTES_PER_PARAMETER * parameters / processes, gathered, activations * compute_bytes / 2)


def check_fit(model: nn.Module, processes: int, compute_bytes: int, device_bytes: float, *, arch: str) -> None:
    """Refuse a model of which a device does not hold its share, before activations.

    Args:
        model: whole.
        processes: that hold it together.
        compute_bytes: as for ``sharded_memory``.
        device_bytes: memory of a device.
        arch: the model's name, for the message.

    Raises:
        InputError: with the bytes and the number of processes that would do.
    """
    parameters, per_layer, layers = sizes_of(model)
    memory = sharded_memory(
        parameters, per_layer=per_layer, layers=layers, processes=processes, compute_bytes=compute_bytes
    )
    if memory.total <= device_bytes:
        return
    room = device_bytes - memory.gathered
    needed = math.ceil(BYTES_PER_PARAMETER * parameters / room) if room > 0 else 0
    advice = f"use {needed} processes or more, or --cpu-offload" if needed else "use --cpu-offload, or a smaller --arch"
    raise InputError(
        f"--arch {arch} with {parameters / 1e9:.1f} billion parameters does not fit: a slice for {processes} processes "
        f"takes {memory.slices / 2**30:.0f} GiB ({BYTES_PER_PARAMETER} bytes per parameter) and gathered layers "
        f"{memory.gathered / 2**30:.0f} GiB, before activations, and the device has {device_bytes / 2**30:.0f} GiB; "
        f"{advice}."
    )


def sizes_of(model: nn.Module) -> tuple[int, int, int]:
    """Parameters of a model and of its largest layer, and the number of layers."""
    named = [module for name, module in model.named_modules() if name.rpartition(".")[2] == LAYERS]
    lists = [module for module in named if isinstance(module, nn.ModuleList)]
    layers = [sum(p.numel() for p in layer.parameters()) for members in lists for layer in members]
    return sum(p.numel() for p in model.parameters()), max(layers, default=0), len(layers)


def device_bytes(device: torch.device) -> float:
    """Memory of a GPU; without bound for a CPU, whose system knows better."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else math.inf


def parameter_count(config: Any) -> float:
    """Entries of a dense model's matrices and embeddings: all but a fiftieth of its parameters."""
    one = Load((1,))
    encoder, decoder = (one if side in config.sides else None for side in ("encoder", "decoder"))
    both = encoder is not None and decoder is not None
    width = getattr(config, f"{config.sides[-1]}_embed_dim")
    tables = config.vocab_size * width * (both + (not config.shares_output_embedding))
    flops = training_flops(config, encoder=encoder, decoder=decoder, predictions=1, pairs=int(both))
    return flops / 6 + tables


def preset_memory(config: Any, processes: int, tokens: int) -> Memory:
    """Memory of a language model with --bf16 and --checkpoint-activations.

    Args:
        config: of the core.
        processes: that hold it together.
        tokens: of a batch, per process.
    """
    parameters, width, layers = parameter_count(config), config.decoder_embed_dim, config.decoder_layers
    tables = config.vocab_size * width * (1 if config.shares_output_embedding else 2)
    per_layer = (parameters - tables) / layers
    return sharded_memory(
        parameters, per_layer=per_layer, processes=processes, tokens=tokens, width=width, layers=layers
    )
