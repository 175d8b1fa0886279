"""Compiled layers within torch's DistributedDataParallel."""

import torch
from torch import nn

from torchscale_fairseq.core.architectures.layer_sequence import LayerSequence


def keep_layers_whole(model: nn.Module) -> None:
    """Let layers that are compiled one by one stay whole where gradients are summed while the backward pass goes on.

    torch cuts what it compiles there where a bucket of gradients ends, every 25 MB, so that it is summed early. If a
    model is compiled as one region, that leaves pieces of a few layers. A large layer by itself would become several
    pieces, each of which costs the host as much as a layer, and whose kernels are not fused with one another's.

    Args:
        model: of which layers may be compiled.
    """
    layers = [layer for part in model.modules() if isinstance(part, LayerSequence) for layer in part]
    if any(layer._compiled_call_impl is not None for layer in layers):
        torch._dynamo.config.optimize_ddp = False
