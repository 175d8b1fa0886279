"""The causal decoder with TorchScale's arguments and seams."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._layers import (
    LayerBase,
    attention_of,
    build_feed_forward,
    drop_path_of,
    layer_norm,
    scale_initial_values,
    scaling_of,
)
from ._stack import CausalStackBase, output_projection_of, relative_bias_of
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
        self._set_feed_forward(args, args.decoder_ffn_embed_dim, is_moe_layer)
        self.final_layer_norm = layer_norm(args, self.embed_dim, multiway=False)
        self.alpha = scaling_of(args, "decoder", is_encoder_decoder).alpha

    def build_ffn(self, embed_dim: int, args: Any) -> nn.Module:
        """The feed-forward network; for subclasses to override."""
        return build_feed_forward(args, embed_dim, args.decoder_ffn_embed_dim)

    def build_self_attention(self, embed_dim: int, args: Any) -> nn.Module:
        """Self-attention; for subclasses to override."""
        return attention_of(args, embed_dim, args.decoder_attention_heads)

    def build_encoder_attention(self, embed_dim: int, args: Any) -> nn.Module:
        """Attention to the encoder; for subclasses to override."""
        return attention_of(args, embed_dim, args.decoder_attention_heads, cross=True)

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


class Decoder(CausalStackBase):
    """A stack of decoder layers.

    Args:
        args: a ``DecoderConfig``, or the like.
        embed_tokens, embed_positions: embeddings, or None.
        output_projection: from features to logits; built by default if the config has a vocabulary.
        is_encoder_decoder: whether there is an encoder.
        kwargs: for the constructor of a further class that a subclass inherits from, such as fairseq's.
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
        self.embed_dim = args.decoder_embed_dim
        self._set_embeddings(self.embed_dim, embed_tokens)
        self.embed_positions = embed_positions
        self._set_output(output_projection)
        self._set_layers(
            self.embed_dim,
            partial(layer_norm, args, multiway=False),
            args.decoder_layers,
            lambda depth, is_moe_layer: self.build_decoder_layer(args, depth, is_moe_layer, is_encoder_decoder),
            final_norm=args.decoder_normalize_before,
        )
        heads = args.decoder_attention_heads
        self.self_attn_relative_position = relative_bias_of(args, heads)
        self.cross_attn_relative_position = relative_bias_of(args, heads) if is_encoder_decoder else None
        if args.bert_init:
            self.apply(init_bert_params)
        scale_initial_values(self.layers, args, "decoder", is_encoder_decoder)

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
        past, positions = tokens_kept(incremental_state), None
        new = max(1, tokens.size(1) - past)
        if self.embed_positions is not None:
            # fairseq's positions, given a state, are those of the last token alone
            positions = self.embed_positions(tokens, incremental_state=incremental_state if new == 1 else None)
        if past:
            tokens = tokens[:, -new:]
            positions = None if positions is None else positions[:, -new:]
            token_embedding = None if token_embedding is None else token_embedding[:, -new:]
        return self._embed(tokens, token_embedding, positions)

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
            x, _, _, l_aux = self._run(
                layer,
                x,
                memory,
                encoder_padding_mask=memory_padding,
                incremental_state=None if incremental_state is None else incremental_state.setdefault(index, {}),
                self_attn_mask=mask if new > 1 else None,
                self_attn_padding_mask=self_attn_padding_mask,
                self_attn_rel_pos=bias,
                cross_attn_rel_pos=cross_bias,
                is_first_step=is_first_step,
            )
            states.append(x)
            balance.append(l_aux)
        return self._finish(x, states, balance, features_only=features_only)

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


def tokens_kept(incremental_state: Any) -> int:
    """Tokens whose keys a decoder's state has."""
    first = None if incremental_state is None else incremental_state.get(0)
    return first["prev_key"].size(2) if first and "prev_key" in first else 0
