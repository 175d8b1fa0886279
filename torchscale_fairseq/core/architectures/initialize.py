"""Initial values of one side of a model, after it is built."""

from torch import nn

from ..initialization import initialize_bert, initialize_layers, initialize_retnet, scale_layers
from .spec import LayerSpec


def initialize(spec: LayerSpec, model: nn.Module, layers: nn.Module) -> None:
    """Draw initial values as the side's spec has them.

    Args:
        spec: the side's.
        model: the side; BERT's initialisation includes its embeddings.
        layers: its layers.
    """
    gain, scale_cross_attention = spec.scaling.gain, spec.scheme == "deepnorm"
    if spec.initialization == "retnet":
        initialize_retnet(layers, gain=gain, torchscale_compatible=spec.torchscale_compatible)
    elif spec.initialization == "xavier":
        xavier = "uniform" if spec.scheme == "plain" else "normal"
        initialize_layers(layers, gain=gain, xavier=xavier, scale_cross_attention=scale_cross_attention)
    else:
        if spec.initialization == "bert":
            initialize_bert(model)
        scale_layers(layers, gain=gain, scale_cross_attention=scale_cross_attention)
