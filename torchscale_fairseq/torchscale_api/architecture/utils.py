"""Initial values."""

from torch import nn

from ..component.multihead_attention import MultiheadAttention
from ..component.multiscale_retention import MultiScaleRetention

STD = 0.02


def init_bert_params(module: nn.Module) -> None:
    """Draw the weights of a linear layer, an embedding or an attention's projections from N(0, 0.02)."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=STD)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight.data[module.padding_idx])
    if isinstance(module, MultiheadAttention | MultiScaleRetention):
        for name in ("q_proj", "k_proj", "v_proj"):
            for linear in getattr(module, name).modules():
                if isinstance(linear, nn.Linear):
                    nn.init.normal_(linear.weight, std=STD)
