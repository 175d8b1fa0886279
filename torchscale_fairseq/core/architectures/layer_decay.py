"""Layer-wise learning rate decay: the lower a parameter's layer, the smaller its learning rate.

BEiT, arXiv:2106.08254, appendix on fine-tuning, after arXiv:1801.06146 (discriminative fine-tuning).
"""

import re

from torch import nn

from .layer_sequence import LayerSequence

EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|\w+_token|subsample)(\.|$)")
"""Names of parameters below the first layer: embeddings of tokens, patches and positions, learned tokens, convolutions
over speech."""


def learning_rate_factors(model: nn.Module, decay: float) -> list[float]:
    """Factors of the learning rate, one per trainable parameter, in the order of ``model.parameters()``.

    With L layers, layer i (from 1) has ``decay ** (L + 1 - i)`` and the embeddings have ``decay ** (L + 1)``. All else
    has 1: final norms, heads, and the decoder of a model with an encoder. A parameter that an embedding shares with
    an output projection or with the decoder counts as the embedding's.

    Args:
        model: with an encoder or decoder of this package; the encoder's layers count if it has both.
        decay: above 0 and at most 1.

    Raises:
        ValueError: the model has no layers of this package.
    """
    name, layers = next(((n, m) for n, m in model.named_modules() if isinstance(m, LayerSequence)), ("", None))
    if layers is None:
        raise ValueError(f"{type(model).__name__} has no encoder or decoder of this package, whose layers count.")
    top, in_layer = len(layers) + 1, re.compile(rf"{re.escape(name)}\.(\d+)\.")
    above = () if name.startswith("decoder.") else ("decoder.",)

    def depth(parameter: str) -> int:
        if match := in_layer.match(parameter):
            return int(match[1]) + 1
        return 0 if EMBEDDING.search(parameter) and not parameter.startswith(above) else top

    return [decay ** (top - depth(n)) for n, p in model.named_parameters() if p.requires_grad]
