"""The bidirectional encoder with TorchScale's arguments and seams."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..component.multiway_network import set_split_position
from ._layers import (
    LayerBase,
    attention_of,
    build_feed_forward,
    drop_path_of,
    layer_norm,
    scale_initial_values,
    scaling_of,
)
from ._stack import StackBase, output_projection_of, relative_bias_of
from .utils import init_bert_params


class EncoderLayer(LayerBase):
    """Self-attention and feed-forward network.

    Args:
        args: an ``EncoderConfig``, or the like.
        depth: of the layer, from 0.
        is_moe_layer: whether it has experts.
        is_encoder_decoder: whether there is a decoder.
    """

    def __init__(self, args: Any, depth: int, is_moe_layer: bool = False, is_encoder_decoder: bool = False):
        super().__init__()
        self.args = args
        self.embed_dim = args.encoder_embed_dim
        self.self_attn = self.build_self_attention(self.embed_dim, args)
        self.self_attn_layer_norm = layer_norm(args, self.embed_dim)
        self.dropout_module = nn.Dropout(args.dropout)
        self.drop_path = drop_path_of(args, depth, args.encoder_layers)
        self.normalize_before = args.encoder_normalize_before
        self._set_feed_forward(args, args.encoder_ffn_embed_dim, is_moe_layer, multiway=args.multiway)
        self.final_layer_norm = layer_norm(args, self.embed_dim)
        self.alpha = scaling_of(args, "encoder", is_encoder_decoder).alpha

    def build_ffn(self, embed_dim: int, args: Any) -> nn.Module:
        """The feed-forward network; for subclasses to override."""
        return build_feed_forward(args, embed_dim, args.encoder_ffn_embed_dim)

    def build_self_attention(self, embed_dim: int, args: Any) -> nn.Module:
        """Self-attention; for subclasses to override."""
        return attention_of(args, embed_dim, args.encoder_attention_heads)

    def forward(
        self,
        x: Tensor,
        encoder_padding_mask: Tensor | None,
        attn_mask: Tensor | None = None,
        rel_pos: Tensor | None = None,
        multiway_split_position: int | None = None,
        incremental_state: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, seq, width) to the same shape, and the balance loss or None.

        Args:
            encoder_padding_mask: (batch, keys), True for padding.
            attn_mask: (seq, keys), anything but 0 where a query must not see a key.
            rel_pos: (batch * heads, seq, keys), added to scores.
            multiway_split_position: tokens of the first modality.
            incremental_state: of this layer.
        """
        if multiway_split_position is not None:
            assert self.args.multiway, "multiway_split_position needs multiway=True in the config."
            self.apply(set_split_position(multiway_split_position))
        if attn_mask is not None:
            hidden = attn_mask.to(torch.bool)
            attn_mask = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, -1e8)
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, _ = self.self_attn(
            query=x,
            key=x,
            value=x,
            key_padding_mask=encoder_padding_mask,
            attn_mask=attn_mask,
            rel_pos=rel_pos,
            incremental_state=incremental_state,
        )
        x = self._add(self.dropout_module(x), residual, self.self_attn_layer_norm)
        return self._feed_forward(x, time_first=True)


class Encoder(StackBase):
    """A stack of encoder layers.

    Args:
        args: an ``EncoderConfig``, or the like.
        embed_tokens, embed_positions: embeddings, or None.
        output_projection: from features to logits; built by default if the config has a vocabulary.
        is_encoder_decoder: whether there is a decoder.
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
        self.args = args
        super().__init__(**kwargs)
        width = args.encoder_embed_dim
        self._set_embeddings(width, embed_tokens)
        self.embed_positions = embed_positions
        self._set_output(output_projection, wanted=not is_encoder_decoder)
        self._set_layers(
            width,
            partial(layer_norm, args),
            args.encoder_layers,
            lambda depth, is_moe_layer: self.build_encoder_layer(args, depth, is_moe_layer, is_encoder_decoder),
            final_norm=args.encoder_normalize_before and args.normalize_output,
        )
        self.relative_position = relative_bias_of(args, args.encoder_attention_heads)
        if args.bert_init:
            self.apply(init_bert_params)
        scale_initial_values(self.layers, args, "encoder", is_encoder_decoder)

    def build_output_projection(self, args: Any) -> nn.Module:
        """From features to the vocabulary; for subclasses to override."""
        tied = self.embed_tokens if args.share_encoder_input_output_embed else None
        return output_projection_of(args, args.encoder_embed_dim, tied)

    def build_encoder_layer(
        self, args: Any, depth: int, is_moe_layer: bool = False, is_encoder_decoder: bool = False
    ) -> nn.Module:
        """One layer; for subclasses to override."""
        return EncoderLayer(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)

    def forward_embedding(
        self, src_tokens: Tensor | None, token_embedding: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The first layer's input, and scaled embeddings without positions."""
        places = None
        if self.embed_positions is not None:
            given = token_embedding if src_tokens is None else src_tokens
            places = self.embed_positions(given, positions=positions)
        return self._embed(src_tokens, token_embedding, places)

    def forward(
        self,
        src_tokens: Tensor | None,
        encoder_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        multiway_split_position: int | None = None,
        features_only: bool = False,
        incremental_state: Any = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Encode a batch; arguments as in TorchScale, others are ignored.

        Returns:
            encoder_out, encoder_embedding, encoder_padding_mask, encoder_states and l_aux.
        """
        assert src_tokens is not None or token_embeddings is not None, "give src_tokens or token_embeddings."
        given = src_tokens if src_tokens is not None else token_embeddings
        assert given is not None
        if encoder_padding_mask is None:
            encoder_padding_mask = torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device)
        if multiway_split_position is not None:
            assert self.args.multiway, "multiway_split_position needs multiway=True in the config."
            self.apply(set_split_position(multiway_split_position))
        x, embedding = self.forward_embedding(src_tokens, token_embeddings, positions)
        new = encoder_padding_mask[:, -x.size(1) :]
        x = x * (1 - new.unsqueeze(-1).to(x.dtype))
        states, balance = ([x] if return_all_hiddens else []), []
        bias = None
        if self.relative_position is not None:
            bias = self.relative_position(batch_size=x.size(0), qlen=x.size(1), klen=x.size(1))
        hides = encoder_padding_mask if incremental_state is None else None
        for index, layer in enumerate(self.layers):
            x, l_aux = self._run(
                layer,
                x,
                encoder_padding_mask=hides,
                attn_mask=attn_mask,
                rel_pos=bias,
                multiway_split_position=multiway_split_position,
                incremental_state=None if incremental_state is None else incremental_state[index],
            )
            if return_all_hiddens:
                states.append(x)
            balance.append(l_aux)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if not features_only and self.output_projection is not None:
            x = self.output_projection(x)
        return {
            "encoder_out": x,
            "encoder_embedding": embedding,
            "encoder_padding_mask": encoder_padding_mask,
            "encoder_states": states,
            "l_aux": balance,
        }
