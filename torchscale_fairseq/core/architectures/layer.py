"""The second half of every layer: a feed-forward network or a mixture of experts."""

from torch import Tensor, nn

from ..layers.attention import MultiheadAttention
from ..layers.moe import MixtureOfExperts, RoutingReport
from ..layers.multiway import at_split
from ..layers.residual import Residual
from .factory import LayerFactory


class Layer(nn.Module):
    """A layer. Subclasses build its first half before the second: parameters stand in TorchScale's order."""

    encoder_attn: MultiheadAttention | None
    encoder_attn_layer_norm: nn.Module | None
    moe_layer: MixtureOfExperts | None
    ffn: nn.Module | None
    final_layer_norm: nn.Module
    residual: Residual

    def _build_cross_attention(self, factory: LayerFactory) -> None:
        self.encoder_attn = factory.cross_attention()
        self.encoder_attn_layer_norm = None if self.encoder_attn is None else factory.sublayer_norm()

    def _build_second_half(self, factory: LayerFactory, depth: int) -> None:
        self.moe_layer = factory.mixture_of_experts(depth)
        self.ffn = factory.feed_forward() if self.moe_layer is None else None
        self.final_layer_norm = factory.sublayer_norm() if self.moe_layer is None else factory.norm()
        self.residual = factory.residual(depth)

    def feed_forward(
        self, x: Tensor, not_routed: Tensor | None, split_position: int | None = None
    ) -> tuple[Tensor, RoutingReport | None]:
        """The second half of the layer.

        Args:
            x: (batch, seq, width).
            not_routed: (batch, seq), True for tokens that go to no expert.
            split_position: tokens of the first modality.

        Returns:
            Shaped like x; and the report of the experts' routing, if there are experts.
        """
        norm = at_split(self.final_layer_norm, split_position)
        if self.moe_layer is not None:
            return self.residual.with_report(x, norm, self.moe_layer, not_routed)
        assert self.ffn is not None
        return self.residual(x, norm, at_split(self.ffn, split_position)), None
