"""A decoder's layers, one after the other."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..layers.moe import RoutingReport
from .blocks import run_layer


class LayerSequence(nn.ModuleList):
    """A module list that can be called, so that its layers can be compiled as one region.

    A compiled layer costs the host about as much time as a dozen kernels; a region costs that once for all layers.
    """

    def forward(
        self, x: Tensor, states: Sequence[Any], **arguments: Any
    ) -> tuple[list[Tensor], list[RoutingReport | None]]:
        """Run x, (batch, seq, width), through the layers.

        Args:
            x: their input.
            states: what each layer keeps between decoding steps, or None.
            arguments: as for ``run_layer``.

        Returns:
            x and each layer's output; and each layer's report.
        """
        outputs, reports = [x], []
        for layer, state in zip(self, states, strict=True):
            x, report = run_layer(layer, x, state=state, **arguments)
            outputs.append(x)
            reports.append(report)
        return outputs, reports
