"""The layers of one side, one after the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers.cache import LayerState
from ..layers.dilated_attention import DilatedAttention
from ..layers.hooked import call_uncompiled
from ..layers.moe import MixtureOfExperts, RoutingReport
from ..layers.residual import Residual
from ..parallel.gathering import can_gather

ONE_REGION = 12
"""Most layers that are compiled as one region. Each layer of a region adds to the time that torch takes to write
its code; layers of one kind that are compiled one by one share theirs, and the first update of a deep model comes
sooner."""

PIECES = 40
"""Most pieces of code that a function may come to before torch leaves it uncompiled. There are up to 34: for layers of
encoder and decoder, with and without experts, in training and in validation, for batches with and without padding, and
of one sentence, one token or more, as torch writes code of its own for sizes of 1."""
TORCHS_PIECES = 8
"""torch's own limit."""


def _options(module: nn.Module) -> dict[str, Any] | None:
    """Options for compiling a layer or a region."""
    if not any(isinstance(part, MixtureOfExperts) and can_gather(part.experts.split) for part in module.modules()):
        return None
    from ..parallel.exchange_order import ordered

    return ordered()


class LayerSequence(nn.ModuleList):
    """A module list that can be called, so that its layers can be compiled as one region.

    A compiled layer costs the host about as much time as a dozen kernels; a region costs that once for all layers. Deep
    models, whose device has more to do meanwhile, gain little by that.
    """

    def forward(
        self,
        x: Tensor,
        *inputs: Any,
        states: Sequence[LayerState] | None = None,
        recompute: bool = False,
        keep_outputs: bool = True,
    ) -> tuple[list[Tensor], list[RoutingReport | None]]:
        """Run x, (batch, seq, width), through the layers.

        Args:
            x: their input.
            inputs: further inputs, which all layers share.
            states: what each layer keeps between decoding steps; None outside of decoding.
            recompute: make a layer's inner activations again in the backward pass instead of keeping them.
            keep_outputs: return x and the outputs of all layers, not of the last layer alone.

        Returns:
            The outputs; and each layer's report of its experts' routing, if it has experts.
        """
        outputs, reports = [x], []
        for index, layer in enumerate(self):
            if states is not None:
                # a step is too small to profit from compiled code
                x, report = call_uncompiled(layer, x, *inputs, states[index])
            elif recompute and torch.is_grad_enabled():
                x, report = checkpoint(layer, x, *inputs, use_reentrant=False)
            else:
                x, report = layer(x, *inputs)
            outputs = [*outputs, x] if keep_outputs else [x]
            reports.append(report)
        return outputs, reports

    def compile_layers(self, *, together: bool, uneven: bool = False) -> None:
        """Compile the layers.

        Args:
            together: as one region, if there are at most ``ONE_REGION``. Layers with experts or dilated attention,
                which run in part outside of compiled code, are compiled one by one anyway.
            uneven: batches seldom have a shape twice, so that code is for many shapes from the first batch on. Else the
                first shape has code of its own, which is the fastest.
        """
        from torch._dynamo import config  # takes seconds to load
        from torch.fx.experimental import _config as symbols

        if config.cache_size_limit >= TORCHS_PIECES:  # a lower limit is a caller's
            config.cache_size_limit = max(config.cache_size_limit, PIECES)
        apart = any(isinstance(module, MixtureOfExperts | DilatedAttention) for module in self.modules())
        deep = len(self) > ONE_REGION and self._share_code()
        if uneven:
            symbols.use_duck_shape = False  # or sizes that are equal in the first batch by chance would have to stay so
            config.specialize_float = True  # or torch fails where a capacity factor decides about shapes
        for module in [self] if together and not apart and not deep else self:
            module.compile(dynamic=True if uneven else None, options=_options(module))

    def _share_code(self) -> bool:
        """Whether code that is compiled for one layer serves the others."""
        return len({module.drop_path_rate for module in self.modules() if isinstance(module, Residual)}) == 1


def routing_outputs(
    reports: list[RoutingReport | None], encoder_out: dict[str, Any] | None = None
) -> dict[str, list[Any]]:
    """``l_aux``, TorchScale's name for the balance losses, and ``routing``, one entry per layer.

    Args:
        reports: of the layers of one side.
        encoder_out: what the other side returned; its entries come first.
    """
    before = encoder_out or {}
    return {
        "l_aux": [*before.get("l_aux", ()), *(None if r is None else r.balance_loss for r in reports)],
        "routing": [*before.get("routing", ()), *reports],
    }
