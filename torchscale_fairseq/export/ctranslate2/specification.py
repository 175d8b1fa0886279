"""A translation model of the core as a specification of CTranslate2.

CTranslate2 computes post-norm layers as norm(y + f(y)); DeepNorm's (DeepNet, arXiv:2203.00555, sec. 3) are
norm(alpha x + f(x)). With y = alpha x the two are one: embeddings and norms write alpha times what they wrote, the
projections that read it are divided by alpha, and the last norm is left alone. Epsilons do not change, and neither do
values, but for rounding.
"""

from collections.abc import Iterable
from typing import Any

import torch
from ctranslate2.converters import utils
from ctranslate2.specs import common_spec, transformer_spec
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.encoder_decoder import EncoderDecoder
from torchscale_fairseq.core.architectures.stack import Stack
from torchscale_fairseq.core.config import EncoderDecoderConfig
from torchscale_fairseq.core.layers.embedding import PositionalEmbedding
from torchscale_fairseq.core.layers.relative_position import RelativePositionBias
from torchscale_fairseq.core.ops.positions import FIRST_POSITION

ACTIVATIONS = {
    "gelu": common_spec.Activation.GELU,
    "relu": common_spec.Activation.RELU,
    "swish": common_spec.Activation.SWISH,
}


def specification(core: EncoderDecoder, source: list[str], target: list[str]) -> Any:
    """A TransformerSpec of CTranslate2 with the weights in float32.

    Args:
        core: a model that ``requirements.refuse`` lets pass.
        source, target: symbols of the dictionaries by their numbers.
    """
    encoder = transformer_spec.TransformerEncoderSpec(**_common(core.config, "encoder", core.encoder))
    decoder = transformer_spec.TransformerDecoderSpec(**_common(core.config, "decoder", core.decoder))
    _fill_side(encoder, encoder.embeddings[0], core.encoder)
    _fill_side(decoder, decoder.embeddings, core.decoder)
    for side, bias in ((encoder, core.encoder.relative_position), (decoder, core.decoder.self_attn_relative_position)):
        if isinstance(bias, RelativePositionBias):
            _relative_bias(side, bias)
    assert isinstance(core.decoder.output_projection, nn.Linear)
    _linear(decoder.projection, core.decoder.output_projection)
    model = transformer_spec.TransformerSpec(encoder, decoder)
    model.config.layer_norm_epsilon = core.config.layernorm_eps
    model.config.decoder_start_token = model.config.eos_token
    model.config.add_source_eos = True
    model.register_source_vocabulary(_vocabulary(source))
    model.register_target_vocabulary(_vocabulary(target))
    return model


def _common(config: EncoderDecoderConfig, side: str, stack: Stack) -> dict[str, Any]:
    assert stack.spec.attention is not None
    return {
        "num_layers": stack.spec.layers,
        "num_heads": stack.spec.attention.heads,
        "pre_norm": stack.spec.pre_norm,
        "activation": ACTIVATIONS[config.activation_fn],
        "layernorm_embedding": config.layernorm_embedding,
        "relative_attention_bias": config.has_relative_bias,
        "ffn_glu": stack.spec.feed_forward.gated,
        "rms_norm": stack.spec.norm == "rmsnorm",
    }


def _vocabulary(symbols: list[str]) -> list[str]:
    return ["<blank>" if symbol == "<pad>" else symbol for symbol in symbols]


def _fill_side(spec: Any, embeddings: Any, stack: Stack) -> None:
    """Embedding, positions, layers and the last norm of one side."""
    alpha = stack.spec.scaling.alpha
    after_embedding = 1.0 if stack.layernorm_embedding is not None else alpha
    assert stack.embed_tokens is not None
    embeddings.weight = _array(stack.embed_tokens.weight)
    spec.scale_embeddings = stack.embed_scale * after_embedding
    if hasattr(spec, "position_encodings"):
        spec.position_encodings.encodings = _array(_positions(stack) * after_embedding)
    if stack.layernorm_embedding is not None:
        _norm(spec.layernorm_embedding, stack.layernorm_embedding, alpha)
    layers: list[Any] = list(stack.layers)
    for number, (layer_spec, layer) in enumerate(zip(spec.layer, layers, strict=True)):
        _fill_layer(layer_spec, layer, alpha, last=number == len(layers) - 1)
    if stack.layer_norm is not None:
        _norm(spec.layer_norm, stack.layer_norm)


def _relative_bias(spec: Any, bias: RelativePositionBias) -> None:
    """The bias, which all layers of a side share."""
    for layer in spec.layer:
        layer.self_attention.relative_attention_bias = _array(bias.relative_attention_bias.weight)
        layer.self_attention.relative_attention_max_distance = _array(torch.tensor(bias.max_distance))


def _fill_layer(spec: Any, layer: Any, alpha: float, *, last: bool) -> None:
    _self_attention(spec.self_attention, layer.self_attn, alpha)
    _norm(spec.self_attention.layer_norm, layer.self_attn_layer_norm, alpha)
    if getattr(layer, "encoder_attn", None) is not None:
        _cross_attention(spec.attention, layer.encoder_attn, alpha)
        _norm(spec.attention.layer_norm, layer.encoder_attn_layer_norm, alpha)
    _linear(spec.ffn.linear_0, layer.ffn.fc1, alpha)
    if hasattr(spec.ffn, "linear_0_noact"):
        _linear(spec.ffn.linear_0_noact, layer.ffn.gate, alpha)
    _linear(spec.ffn.linear_1, layer.ffn.fc2)
    _norm(spec.ffn.layer_norm, layer.final_layer_norm, 1.0 if last else alpha)


def _self_attention(spec: Any, attention: Any, alpha: float) -> None:
    _fused(spec.linear[0], (attention.q_proj, attention.k_proj, attention.v_proj), alpha)
    _linear(spec.linear[1], attention.out_proj)


def _cross_attention(spec: Any, attention: Any, alpha: float) -> None:
    """The memory, unlike the decoder's own values, is not scaled."""
    _linear(spec.linear[0], attention.q_proj, alpha)
    _fused(spec.linear[1], (attention.k_proj, attention.v_proj), 1.0)
    _linear(spec.linear[2], attention.out_proj)


def _fused(spec: Any, projections: Iterable[nn.Linear], alpha: float) -> None:
    parts = []
    for projection in projections:
        parts.append(common_spec.LinearSpec())
        _linear(parts[-1], projection, alpha)
    utils.fuse_linear(spec, parts)


def _linear(spec: Any, linear: nn.Linear, alpha: float = 1.0) -> None:
    """A projection that reads alpha times its input."""
    spec.weight = _array(linear.weight / alpha)
    if linear.bias is not None:
        spec.bias = _array(linear.bias)


def _norm(spec: Any, norm: Any, alpha: float = 1.0) -> None:
    """A norm that writes alpha times its output."""
    spec.gamma = _array(norm.weight * alpha)
    if hasattr(norm, "bias"):
        spec.beta = _array(norm.bias * alpha)


def _positions(stack: Stack) -> Tensor:
    """(tokens, width); zeros for a side without positions, where CTranslate2 would put sines."""
    table: Any = stack.embed_positions
    if table is None:
        assert stack.spec.positions is not None
        return torch.zeros(stack.spec.positions.longest, stack.spec.width)
    rows: Tensor = table.weight if isinstance(table, PositionalEmbedding) else table.table
    return rows[FIRST_POSITION:]


def _array(tensor: Tensor) -> Any:
    """In float32; whole numbers in int32."""
    dtype = torch.float32 if tensor.is_floating_point() else torch.int32
    return tensor.detach().to(dtype).contiguous().numpy()
