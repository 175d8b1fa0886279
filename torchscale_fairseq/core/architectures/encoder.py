"""The bidirectional encoder (BERT, or the source side of a translation model)."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncoderConfig, EncoderDecoderConfig
from ..layers.cache import KeyValueCache
from ..layers.moe import RoutingReport
from ..layers.multiway import apply
from ..ops.masks import as_mask, marked
from ..ops.positions import has_padding_inside, relative_positions
from ..ops.xpos import XPosTables
from ..parallel.sequence import SequenceSlice
from .blocks import SideOptions, position_rows, routing_outputs, run_layer
from .stack import Stack


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network."""

    def __init__(self, options: SideOptions, depth: int):
        super().__init__()
        self.self_attn = options.self_attention()
        self.self_attn_layer_norm = options.sublayer_norm()
        with_experts = options.has_experts(depth)
        self.moe_layer = options.mixture_of_experts() if with_experts else None
        self.ffn = None if with_experts else options.feed_forward()
        self.final_layer_norm = options.norm() if with_experts else options.sublayer_norm()
        self.residual = options.residual(depth)
        self.routes_time_first = options.config.torchscale_compatible  # which decides who finds a place

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None,
        bias: Tensor | None,
        xpos: XPosTables | None,
        cache: KeyValueCache | None,
        split_position: int | None,
        sequence: SequenceSlice | None,
        not_routed: Tensor | None,
    ) -> tuple[Tensor, RoutingReport | None]:
        """(batch, seq, width) to the same; arguments as for MultiheadAttention and MixtureOfExperts."""
        x = self.residual(
            x,
            lambda y: apply(self.self_attn_layer_norm, y, split_position),
            lambda y: self.self_attn(
                y,
                key_padding_mask=padding_mask,
                bias=bias,
                xpos=xpos,
                cache=cache,
                split_position=split_position,
                sequence=sequence,
            ),
        )
        return self.residual.with_report(
            x,
            lambda y: apply(self.final_layer_norm, y, split_position),
            lambda y: self._feed_forward(y, split_position, not_routed),
        )

    def _feed_forward(
        self, y: Tensor, split_position: int | None, not_routed: Tensor | None
    ) -> tuple[Tensor, RoutingReport | None]:
        if self.ffn is not None:
            return apply(self.ffn, y, split_position), None
        assert self.moe_layer is not None
        if self.routes_time_first:
            y, report = self.moe_layer(y.transpose(0, 1))
            return y.transpose(0, 1), report
        return self.moe_layer(y, not_routed)


class Encoder(Stack):
    """A stack of encoder layers between embeddings and, unless told otherwise, a projection to the vocabulary.

    Args:
        config: the options.
        embed_tokens, embed_positions: as for ``Stack``.
        output_projection: module from features to logits; by default built if the config has a vocabulary.
        is_encoder_decoder: this is the source side of an encoder-decoder, which has no output projection.
    """

    config: EncoderConfig | EncoderDecoderConfig

    def __init__(
        self,
        config: EncoderConfig | EncoderDecoderConfig,
        embed_tokens: nn.Embedding | None = None,
        embed_positions: nn.Module | None = None,
        output_projection: nn.Module | None = None,
        is_encoder_decoder: bool = False,
    ):
        super().__init__(config, "encoder", embed_tokens, embed_positions, is_encoder_decoder=is_encoder_decoder)
        options = self.options
        self.layers = nn.ModuleList(EncoderLayer(options, depth) for depth in range(options.layers))
        self.layer_norm = options.norm() if options.pre_norm and config.normalize_output else None
        self.relative_position = options.relative_bias(bidirectional=True)
        self.output_projection = output_projection
        if output_projection is None and not (is_encoder_decoder or config.no_output_layer or config.vocab_size < 0):
            shared = isinstance(config, EncoderConfig) and config.share_encoder_input_output_embed
            tied = self._tied_embedding("share_encoder_input_output_embed", shared=shared)
            self.output_projection = options.output_projection(tied)
        options.finish(self, self.layers)

    def forward(
        self,
        src_tokens: Tensor | None,
        encoder_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        multiway_split_position: int | None = None,
        features_only: bool = False,
        incremental_state: list[dict[str, Any]] | None = None,
        positions: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
    ) -> dict[str, Any]:
        """Encode a batch.

        Args:
            src_tokens: (batch, seq), or None with token_embeddings.
            encoder_padding_mask: (batch, seq), True or 1 for padding; no floats.
            attn_mask: (seq, keys), True, 1 or -inf (anything but 0) where a query must not see a key.
            return_all_hiddens: fill encoder_states.
            token_embeddings: (batch, seq, width), in place of embed_tokens(src_tokens).
            multiway_split_position: tokens of the first modality, -1 for all.
            features_only: skip the output projection.
            incremental_state: one dict per layer, in which keys and values of earlier calls are kept; new
                tokens see them all.
            positions: (batch, seq), rows of the position table; by default counted from the padding mask.
            sequence_slice: the tokens are this process's slice of longer rows, which it knows the padding of; needs
                dilated attention.

        Returns:
            encoder_out (batch, seq, width or vocabulary), encoder_embedding, encoder_padding_mask,
            encoder_states (list); l_aux (list, balance losses, None for a dense layer); routing (list,
            RoutingReport, None likewise).

        Raises:
            InputError: a padding mask holds floats, or the input is longer than max_source_positions.
            ValueError: input is missing, or a slice continues earlier ones.
        """
        if sequence_slice is not None and incremental_state is not None:
            raise ValueError("incremental_state has no place with sequence_slice.")
        if token_embeddings is None:
            if src_tokens is None:
                raise ValueError("the encoder needs src_tokens or token_embeddings.")
            token_embeddings = self._embed_tokens(src_tokens)
        encoder_padding_mask = as_mask(encoder_padding_mask, "encoder_padding_mask")
        batch, length = token_embeddings.shape[:2]
        total = length
        if sequence_slice is not None:
            sequence_slice, total = sequence_slice.to(token_embeddings.device), sequence_slice.total
            encoder_padding_mask = sequence_slice.padding_mask()
            positions = sequence_slice.position_rows(token_embeddings.device)
        split = self._checked_split(multiway_split_position)
        caches = [None] * len(self.layers) if incremental_state is None else _caches(incremental_state)
        past = 0 if caches[0] is None else caches[0].length
        padding_mask = self._checked_padding(encoder_padding_mask, past, length)
        new_padding = None if padding_mask is None else padding_mask[:, past:]

        embedding = self.embed_scale * token_embeddings
        counted = None if self.config.torchscale_compatible else new_padding  # TorchScale counts padding too
        rows = position_rows(positions, counted, start=past, x=embedding)
        x = self._add_positions(embedding, rows, sys.maxsize if positions is not None else past + length, split)
        if new_padding is not None:
            x = x.masked_fill(new_padding.unsqueeze(-1), 0.0)
        relative = self._relative_positions(padding_mask, past, x, sequence_slice)
        xpos = self.options.xpos_tables(relative, causal=False, centre=total // 2, span=total, dtype=x.dtype)
        bias = self._bias(relative, attn_mask, x.dtype)

        states = [x] if return_all_hiddens else []
        reports = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, report = run_layer(
                layer,
                x,
                recompute=self.config.checkpoint_activations,
                stepping=cache is not None,
                padding_mask=padding_mask,
                bias=bias,
                xpos=xpos,
                cache=cache,
                split_position=split,
                sequence=sequence_slice,
                not_routed=None if self.config.torchscale_compatible else new_padding,
            )
            reports.append(report)
            if return_all_hiddens:
                states.append(x)
        if self.layer_norm is not None:
            x = apply(self.layer_norm, x, split)
        if self.output_projection is not None and not features_only:
            x = self.output_projection(x)
        if encoder_padding_mask is None:
            encoder_padding_mask = torch.zeros(batch, length, dtype=torch.bool, device=x.device)
        return {
            "encoder_out": x,
            "encoder_embedding": embedding,
            "encoder_padding_mask": encoder_padding_mask,
            "encoder_states": states,
            **routing_outputs(reports),
        }

    def _checked_split(self, split_position: int | None) -> int | None:
        if split_position is not None and not self.config.multiway:
            raise ValueError(
                f"multiway_split_position ({split_position}) has no use without multiway=True in the config."
            )
        return split_position

    def _checked_padding(self, padding_mask: Tensor | None, past: int, length: int) -> Tensor | None:
        padding_mask = marked(padding_mask)
        if padding_mask is not None and padding_mask.size(1) != past + length:
            raise ValueError(
                f"encoder_padding_mask covers {padding_mask.size(1)} tokens, but there are {past + length}, "
                f"{past} of them from earlier calls."
            )
        return padding_mask

    def _relative_positions(
        self, padding_mask: Tensor | None, past: int, x: Tensor, sequence_slice: SequenceSlice | None
    ) -> Tensor:
        if sequence_slice is not None:
            return sequence_slice.positions(x.device)
        if past and (self.relative_position is not None or self.config.xpos_rel_pos):
            raise ValueError("incremental_state in an encoder knows no relative positions; encode the whole sequence.")
        if padding_mask is not None and has_padding_inside(padding_mask):
            return relative_positions(padding_mask)
        return torch.arange(x.size(1), device=x.device)[None]

    def _bias(self, relative: Tensor, attn_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        bias = None if self.relative_position is None else self.relative_position(relative, relative)
        if attn_mask is not None:
            hidden = torch.zeros_like(attn_mask, dtype=dtype).masked_fill(attn_mask.bool(), torch.finfo(dtype).min / 2)
            bias = hidden[None, None] if bias is None else bias + hidden
        return bias


def _caches(incremental_state: list[dict[str, Any]]) -> list[KeyValueCache]:
    return [layer.setdefault("self_attn", KeyValueCache()) for layer in incremental_state]
