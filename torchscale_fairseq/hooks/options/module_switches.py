"""Switches by which fairseq reaches into a model's modules by their class.

Models of this package have no modules of fairseq's classes. ``--retain-dropout`` works all the same
(``models/_dropout.py``); the flags listed here belong to stock's models, so that the command line does not know them
with ours; and product quantization is refused.
"""

from typing import Any

from torch import nn

from torchscale_fairseq.core.errors import InputError

OF_STOCK_MODELS = (
    "quant_noise_pq",
    "quant_noise_pq_block_size",
    "quant_noise_scalar",
    "encoder_layerdrop",
    "decoder_layerdrop",
    "encoder_layers_to_keep",
    "decoder_layers_to_keep",
    "mha_heads_to_keep",
    "ffn_blocks_to_remove",
    "adaptive_softmax_cutoff",
    "base_layers",
    "offload_activations",
    "min_params_to_wrap",
)
"""Options of stock's models: quant noise, layer drop, pruning, adaptive softmax, BASE layers, and sharding by class."""


def refuse_product_quantization(common: Any, model: nn.Module) -> None:
    """fairseq's iterative product quantization replaces linear layers by modules of its own.

    Args:
        common: fairseq's common options.
        model: the one to be trained.

    Raises:
        InputError: it is asked for with a model of this package.
    """
    if common.quantization_config_path is not None and type(model).__module__.startswith("torchscale_fairseq."):
        raise InputError(
            f"--quantization-config-path ({common.quantization_config_path}) needs one of stock's models, whose layers "
            "fairseq can replace; with models of this package, --bitnet trains weights of 1 or 1.58 bits."
        )
