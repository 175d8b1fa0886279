"""--log-norms-interval: norms of gradients and updates per layer, in TensorBoard's run ``norms``.

Gradients are taken as they are before clipping, averaged as fairseq does it and free of --fp16's loss scale, so that
their squares add up to that of fairseq's ``gnorm``. Updates are those of the weights that the optimizer keeps: under
--fp16 and --bf16 its copy in float32. Experts that several processes hold count once each.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from fairseq.logging.progress_bar import TensorboardProgressBarWrapper
from torch import Tensor, nn

from torchscale_fairseq.core.ops.sparse_clip import sum_of_squares
from torchscale_fairseq.core.parallel.expert_parameters import is_expert
from torchscale_fairseq.core.parallel.groups import ExpertSplit
from torchscale_fairseq.hooks.experts.gradient_clipping import over_processes
from torchscale_fairseq.hooks.training.mixed_precision import parameters_in_float32

RUN = "norms"


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to, or else its module."""
    match = re.match(r"^(.*?\blayers\.\d+)\.", name)
    return match[1] if match else name.rpartition(".")[0] or name


class LayerNorms:
    """Measures the layers' norms every N updates. All processes call it together.

    Args:
        model: in training, not wrapped.
        interval: updates.
        folder: of TensorBoard's runs; None in processes that write nothing.
        split: how experts are held, if several processes hold them.
    """

    def __init__(self, model: nn.Module, interval: int, folder: str | None, split: ExpertSplit | None):
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.interval = interval
        self.folder = folder
        self.split = split
        self._gradients: dict[str, Tensor] = {}
        self._before: list[Tensor] | None = None

    def before_update(self, optimizer: Any, update: int) -> None:
        """Measure gradients, and remember weights, if this update is one to measure.

        Args:
            optimizer: fairseq's, about to clip gradients.
            update: its number, counted from 1.
        """
        self._before = None
        if update % self.interval:
            return
        factor = _gradient_factor(optimizer)
        squares = self._by_layer([p.grad for _, p in self.parameters])
        self._gradients = {layer: value.sqrt() * factor for layer, value in squares.items()}
        self._before = [w.detach().clone() for w in self._weights(optimizer)]

    def after_update(self, optimizer: Any, update: int) -> None:
        """Measure the update, and write both."""
        if self._before is None:
            return
        differences = [new.detach() - old for new, old in zip(self._weights(optimizer), self._before, strict=True)]
        self._before = None
        updates = self._by_layer(differences)
        if self.folder is None:
            return
        values = {f"gradient/{layer}": float(value) for layer, value in self._gradients.items()}
        values |= {f"update/{layer}": float(value.sqrt()) for layer, value in updates.items()}
        TensorboardProgressBarWrapper(None, self.folder)._log_to_tensorboard(values, RUN, update)

    def _by_layer(self, tensors: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Sums of squares, of one tensor per parameter."""
        dense: dict[str, list[Tensor]] = defaultdict(list)
        experts: dict[str, list[Tensor]] = defaultdict(list)
        device = self.parameters[0][1].device
        for (name, p), tensor in zip(self.parameters, tensors, strict=True):
            if tensor is not None:
                (experts if is_expert(p) else dense)[layer_of(name)].append(tensor.detach())
        layers = list(dict.fromkeys(layer_of(name) for name, _ in self.parameters))
        of_experts = torch.stack([sum_of_squares(experts[layer], device) for layer in layers])
        if self.split is not None:
            of_experts = over_processes(of_experts, self.split)
        return {layer: sum_of_squares(dense[layer], device) + of_experts[i] for i, layer in enumerate(layers)}

    def _weights(self, optimizer: Any) -> list[Tensor]:
        """The weights that the optimizer updates, one tensor per parameter."""
        copies = _copies_in_float32(optimizer)
        return [copies.get(id(p), p) for _, p in self.parameters]


def _gradient_factor(optimizer: Any) -> Any:
    """The factor by which the optimizer has yet to multiply gradients."""
    if hasattr(optimizer, "_multiply_factor"):
        return optimizer._multiply_factor
    scaler = getattr(optimizer, "scaler", None)  # of --amp
    return 1.0 if scaler is None else 1.0 / scaler.get_scale()


def _copies_in_float32(optimizer: Any) -> dict[int, Tensor]:
    """By ``id`` of the parameter in half precision; empty where there are none."""
    if getattr(optimizer, "fp32_params", None) is None:
        return {}
    copies = parameters_in_float32(optimizer)
    return {id(p): copy for p, copy in zip(optimizer.fp16_params, copies, strict=True)}
