"""How much memory a model in training takes."""

from typing import Any

from torchscale_fairseq.core.flops import Load, training_flops


def parameter_count(config: Any) -> float:
    """Entries of a dense model's matrices and embeddings: all but a fiftieth of its parameters."""
    one = Load((1,))
    sides = {side: one for side in ("encoder", "decoder") if hasattr(config, f"{side}_layers")}
    shared = getattr(config, "shares_output_embedding", False) or getattr(
        config, "share_encoder_input_output_embed", False
    )
    width = getattr(config, "decoder_embed_dim", None) or config.encoder_embed_dim
    tables = config.vocab_size * width * (len(sides) - 1 if shared else len(sides))
    return training_flops(config, **sides, predictions=1, pairs=len(sides) - 1) / 6 + tables
