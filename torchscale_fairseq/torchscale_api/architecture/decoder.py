"""The causal decoder with TorchScale's arguments and seams."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..component.multihead_attention import MultiheadAttention
from ..component.relative_position_bias import RelativePositionBias
from ._layers import (
    LayerBase,
    build_feed_forward,
    drop_path_of,
    has_experts,
    layer_norm,
    moe_layer_of,
    output_projection_of,
    scale_initial_values,
    scaling_of,
)
from .utils import init_bert_params


class DecoderLayer(LayerBase):
    """Causal self-attention, attention to an encoder if there is one, and feed-forward network.

    Args:
        args: a ``DecoderConfig``, or the like.
        depth: of the layer, from 0.
        is_moe_layer: whether it has experts.
        is_encoder_decoder: whether there is an encoder.
    """

    def __init__(self, args: Any, depth: int, is_moe_layer: bool = False, is_encoder_decoder: bool = False):
        super().__init__()
        self.args = args
        self.embed_dim = args.decoder_embed_dim
        self.dropout_module = nn.Dropout(args.dropout)
        self.drop_path = drop_path_of(args, depth, args.decoder_layers)
        self.self_attn = self.build_self_attention(self.embed_dim, args)
        self.normalize_before = args.decoder_normalize_before
        self.self_attn_layer_norm = layer_norm(args, self.embed_dim, multiway=False)
        self.encoder_attn: nn.Module | None = None
        self.encoder_attn_layer_norm: nn.Module | None = None
        if is_encoder_decoder:
            self.encoder_attn = self.build_encoder_attention(self.embed_dim, args)
            self.encoder_attn_layer_norm = layer_norm(args, self.embed_dim, multiway=False)
        self.is_moe_layer = is_moe_layer
        self.ffn_dim = args.decoder_ffn_embed_dim
        if is_moe_layer:
            self.moe_layer = moe_layer_of(args, self.embed_dim, self.ffn_dim)
        else:
            self.ffn = self.build_ffn(self.embed_dim, args)
        self.final_layer_norm = layer_norm(args, self.embed_dim, multiway=False)
        self.alpha = scaling_of(args, "decoder", is_encoder_decoder).alpha

    def build_ffn(self, embed_dim: int, args: Any) -> nn.Module:
        """The feed-forward network; for subclasses to override."""
        return build_feed_forward(args, embed_dim, args.decoder_ffn_embed_dim)

    def build_self_attention(self, embed_dim: int, args: Any) -> nn.Module:
        """Self-attention; for subclasses to override."""
        return MultiheadAttention(
            args,
            embed_dim,
            args.decoder_attention_heads,
            dropout=args.attention_dropout,
            self_attention=True,
            encoder_decoder_attention=False,
            subln=args.subln,
        )

    def build_encoder_attention(self, embed_dim: int, args: Any) -> nn.Module:
        """Attention to the encoder; for subclasses to override."""
        return MultiheadAttention(
            args,
            embed_dim,
            args.decoder_attention_heads,
            dropout=args.attention_dropout,
            self_attention=False,
            encoder_decoder_attention=True,
            subln=args.subln,
        )

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: dict[str, Tensor] | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        self_attn_rel_pos: Tensor | None = None,
        cross_attn_rel_pos: Tensor | None = None,
        is_first_step: bool = False,
    ) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        """(batch, seq, width) to the same shape, attention weights, None, and the balance loss or None."""
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, weights = self.self_attn(
            query=x,
            key=x,
            value=x,
            key_padding_mask=self_attn_padding_mask,
            incremental_state=incremental_state,
            attn_mask=self_attn_mask,
            rel_pos=self_attn_rel_pos,
            is_first_step=is_first_step,
            is_causal=True,
        )
        x = self._add(self.dropout_module(x), residual, self.self_attn_layer_norm)
        if self.encoder_attn is not None and encoder_out is not None:
            assert self.encoder_attn_layer_norm is not None
            residual = x
            if self.normalize_before:
                x = self.encoder_attn_layer_norm(x)
            x, weights = self.encoder_attn(
                query=x,
                key=encoder_out,
                value=encoder_out,
                key_padding_mask=encoder_padding_mask,
                incremental_state=None,
                rel_pos=cross_attn_rel_pos,
            )
            x = self._add(self.dropout_module(x), residual, self.encoder_attn_layer_norm)
        x, l_aux = self._feed_forward(x, time_first=False)
        return x, weights, None, l_aux


class Decoder(nn.Module):
    """A stack of decoder layers.

    Args:
        args: a ``DecoderConfig``, or the like.
        embed_tokens, embed_positions: embeddings, or None.
        output_projection: from features to logits; built by default if the config has a vocabulary.
        is_encoder_decoder: whether there is an encoder.
        kwargs: ignored.
    """

    def __init__(
        self,
        args: Any,
        embed_tokens: nn.Module | None = None,
        embed_positions: nn.Module | None = None,
        output_projection: nn.Module | None = None,
        is_encoder_decoder: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.args = args
        self.dropout_module = nn.Dropout(args.dropout)
        width = args.decoder_embed_dim
        self.embed_dim = width
        self.embed_scale = 1.0 if args.no_scale_embedding else math.sqrt(width)
        self.embed_tokens: Any = embed_tokens
        self.embed_positions = embed_positions
        if output_projection is None and not args.no_output_layer and args.vocab_size > 0:
            output_projection = self.build_output_projection(args)
        self.output_projection = output_projection
        self.layernorm_embedding = layer_norm(args, width, multiway=False) if args.layernorm_embedding else None
        self.layers = nn.ModuleList(
            self.build_decoder_layer(args, depth, has_experts(args, depth), is_encoder_decoder)
            for depth in range(args.decoder_layers)
        )
        self.num_layers = len(self.layers)
        self.layer_norm = layer_norm(args, width, multiway=False) if args.decoder_normalize_before else None
        self.self_attn_relative_position = self._bias_of(args, wanted=True)
        self.cross_attn_relative_position = self._bias_of(args, wanted=is_encoder_decoder)
        if args.bert_init:
            self.apply(init_bert_params)
        scale_initial_values(self.layers, args, "decoder", is_encoder_decoder)

    def _bias_of(self, args: Any, *, wanted: bool) -> RelativePositionBias | None:
        if not (wanted and args.rel_pos_buckets > 0 and args.max_rel_pos > 0):
            return None
        return RelativePositionBias(
            num_buckets=args.rel_pos_buckets, max_distance=args.max_rel_pos, n_heads=args.decoder_attention_heads
        )

    def build_output_projection(self, args: Any) -> nn.Module:
        """From features to the vocabulary; for subclasses to override."""
        tied = self.embed_tokens if args.share_decoder_input_output_embed else None
        return output_projection_of(args, args.decoder_embed_dim, tied)

    def build_decoder_layer(
        self, args: Any, depth: int, is_moe_layer: bool = False, is_encoder_decoder: bool = False
    ) -> nn.Module:
        """One layer; for subclasses to override."""
        return DecoderLayer(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)

    def forward_embedding(
        self, tokens: Tensor, token_embedding: Tensor | None = None, incremental_state: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The first layer's input, and scaled embeddings without positions; only of new tokens if a state has earlier
        ones."""
        positions = None
        if self.embed_positions is not None:
            positions = self.embed_positions(tokens, incremental_state=incremental_state)
        past = tokens_kept(incremental_state)
        if past:
            new = max(1, tokens.size(1) - past)
            tokens = tokens[:, -new:]
            positions = None if positions is None else positions[:, -new:]
            token_embedding = None if token_embedding is None else token_embedding[:, -new:]
        if token_embedding is None:
            token_embedding = self.embed_tokens(tokens)
        x = embed = self.embed_scale * token_embedding
        if positions is not None:
            x = x + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x), embed

    def is_first_step(self, incremental_state: Any) -> bool:
        """Whether the state says that a whole prompt comes."""
        return bool(incremental_state is not None and incremental_state.get("is_first_step", False))

    def forward(
        self,
        prev_output_tokens: Tensor,
        self_attn_padding_mask: Tensor | None = None,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: Any = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode a batch; arguments as in TorchScale, others are ignored.

        Args:
            incremental_state: a dictionary, in which each layer keeps prev_key and prev_value of all tokens so far.

        Returns:
            Logits, or features; and inner_states, l_aux and attn.
        """
        past = tokens_kept(incremental_state)
        x, _ = self.forward_embedding(prev_output_tokens, token_embeddings, incremental_state)
        is_first_step = self.is_first_step(incremental_state)
        batch, new = x.shape[:2]
        mask = torch.full((new, past + new), float("-inf"), dtype=x.dtype, device=x.device).triu(past + 1)
        bias = self._self_bias(batch, new, past)
        memory, memory_padding, cross_bias = self._memory(encoder_out, batch, new, past)
        states, balance = [x], list(encoder_out["l_aux"]) if encoder_out and "l_aux" in encoder_out else []
        for index, layer in enumerate(self.layers):
            state = None if incremental_state is None else incremental_state.setdefault(index, {})
            arguments = {
                "encoder_padding_mask": memory_padding,
                "incremental_state": state,
                "self_attn_mask": mask if new > 1 else None,
                "self_attn_padding_mask": self_attn_padding_mask,
                "self_attn_rel_pos": bias,
                "cross_attn_rel_pos": cross_bias,
                "is_first_step": is_first_step,
            }
            if self.args.checkpoint_activations and torch.is_grad_enabled() and state is None:
                x, _, _, l_aux = checkpoint(layer, x, memory, use_reentrant=False, **arguments)
            else:
                x, _, _, l_aux = layer(x, memory, **arguments)
            states.append(x)
            balance.append(l_aux)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if not features_only:
            x = self.output_layer(x)
        return x, {"inner_states": states, "l_aux": balance, "attn": None}

    def _self_bias(self, batch: int, new: int, past: int) -> Tensor | None:
        if self.self_attn_relative_position is None:
            return None
        bias: Tensor = self.self_attn_relative_position(batch_size=batch, qlen=new, klen=past + new, step=past)
        return bias

    def _memory(self, encoder_out: dict[str, Any] | None, batch: int, new: int, past: int) -> tuple[Any, Any, Any]:
        """The encoder's output, its padding, and the bias of attention to it."""
        if encoder_out is None:
            return None, None, None
        memory, bias = encoder_out["encoder_out"], None
        if self.cross_attn_relative_position is not None:
            bias = self.cross_attn_relative_position(batch_size=batch, qlen=new, klen=memory.size(1), step=past)
        return memory, encoder_out["encoder_padding_mask"], bias

    def output_layer(self, features: Tensor) -> Tensor:
        """Features to logits."""
        return features if self.output_projection is None else self.output_projection(features)


def tokens_kept(incremental_state: Any) -> int:
    """Tokens whose keys a decoder's state has."""
    first = None if incremental_state is None else incremental_state.get(0)
    return first["prev_key"].size(2) if first and "prev_key" in first else 0
