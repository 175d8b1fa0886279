"""The bidirectional encoder (BERT, or the source side of a translation model)."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncoderConfig, EncoderDecoderConfig
from ..layers.attention_inputs import AttentionInputs
from ..layers.cache import NO_STATE, KeyValueCache, LayerState
from ..layers.moe import RoutingReport
from ..layers.multiway import apply, at_split
from ..ops.masks import as_mask, empty_mask, marked
from ..ops.packed_attention import with_row_bias
from ..ops.padding_bias import with_padding_bias
from ..parallel.sequence import SequenceSlice
from .factory import LayerFactory
from .layer import Layer
from .layer_sequence import routing_outputs
from .positions import TokenPositions, packed_positions, position_rows, positions_in_scores, xpos_for
from .spec import encoder_spec
from .stack import Stack


class EncoderLayer(Layer):
    """Self-attention and feed-forward network."""

    def __init__(self, factory: LayerFactory, depth: int):
        super().__init__()
        self.self_attn = factory.self_attention()
        self.self_attn_layer_norm = factory.sublayer_norm()
        self._build_second_half(factory, depth)

    def forward(
        self,
        x: Tensor,
        attention: AttentionInputs,
        not_routed: Tensor | None = None,
        state: LayerState = NO_STATE,
    ) -> tuple[Tensor, RoutingReport | None]:
        """(batch, seq, width) to the same; arguments as for ``DecoderLayer``."""
        norm = at_split(self.self_attn_layer_norm, attention.split_position)
        x = self.residual(x, norm, self.self_attn, attention, state.self_attn)
        return self.feed_forward(x, not_routed, attention.split_position)


class Encoder(Stack):
    """A stack of encoder layers between embeddings and, by default, a projection to the vocabulary.

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
        spec = encoder_spec(config, is_encoder_decoder=is_encoder_decoder)
        super().__init__(config, spec, embed_tokens, embed_positions)
        self.relative_position = self.factory.relative_bias(bidirectional=True)
        if not is_encoder_decoder:
            option = "share_encoder_input_output_embed"
            shared = isinstance(config, EncoderConfig) and config.share_encoder_input_output_embed
            output_projection = self._output_projection(output_projection, option, shared=shared)
        self.output_projection = output_projection
        self._finish(one_region=not is_encoder_decoder, uneven=is_encoder_decoder)

    def build_layer(self, factory: LayerFactory, depth: int) -> Layer:
        """An ``EncoderLayer``."""
        return EncoderLayer(factory, depth)

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
        document_starts: Tensor | None = None,
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
            document_starts: (batch, seq), True or 1 for the first token of each document. Documents do not see each
                other, and positions begin anew in each; padding ends one.

        Returns:
            encoder_out (batch, seq, width or vocabulary), encoder_embedding, encoder_padding_mask,
            encoder_states (list); documents, if there are document_starts; l_aux (list, balance losses, None for a
            dense layer); routing (list, RoutingReport, None likewise).

        Raises:
            InputError: a padding mask holds floats, or the input is longer than max_source_positions.
            ValueError: input is missing; a slice continues earlier ones; or an argument has no place with
                document_starts.
        """
        if sequence_slice is not None and incremental_state is not None:
            raise ValueError("incremental_state has no place with sequence_slice.")
        if document_starts is not None:
            _refuse_with_documents(incremental_state, positions, attn_mask, multiway_split_position)
        if token_embeddings is None:
            token_embeddings = self._embed_given(src_tokens)
        encoder_padding_mask = as_mask(encoder_padding_mask, "encoder_padding_mask")
        split = self._checked_split(multiway_split_position)
        states = None if incremental_state is None else _states(incremental_state)
        past = states[0].self_attn.length if states else 0
        if sequence_slice is not None:
            sequence_slice = sequence_slice.to(token_embeddings.device)
            encoder_padding_mask = sequence_slice.padding_mask()
            tokens = TokenPositions.of_slice(sequence_slice, token_embeddings.device)
        elif document_starts is not None:
            tokens = packed_positions(document_starts, encoder_padding_mask)
        else:
            tokens = self._positions(encoder_padding_mask, positions, past, token_embeddings)

        embedding = self.embed_scale * token_embeddings
        padding = None if tokens.padding_mask is None else tokens.padding_mask[:, past:]
        x = self._with_positions(embedding, tokens, padding, past, split)
        outputs, reports = self.layers(
            x,
            self._attention_inputs(tokens, attn_mask, split, sequence_slice, x.dtype),
            None if self.config.torchscale_compatible else padding,
            states=states,
            recompute=self.config.checkpoint_activations,
            keep_outputs=return_all_hiddens,
        )
        x = outputs[-1]
        if self.layer_norm is not None:
            x = apply(self.layer_norm, x, split)
        if self.output_projection is not None and not features_only:
            x = self.output_projection(x)
        if encoder_padding_mask is None:
            encoder_padding_mask = empty_mask((x.size(0), x.size(1)), x.device)
        return {
            "encoder_out": x,
            "encoder_embedding": embedding,
            "encoder_padding_mask": encoder_padding_mask,
            "encoder_states": outputs if return_all_hiddens else [],
            **({} if tokens.documents is None else {"documents": tokens.documents}),
            **routing_outputs(reports),
        }

    def _embed_given(self, src_tokens: Tensor | None) -> Tensor:
        if src_tokens is None:
            raise ValueError("the encoder needs src_tokens or token_embeddings.")
        return self._embed_tokens(src_tokens)

    def _checked_split(self, split_position: int | None) -> int | None:
        if split_position is not None and not self.config.multiway:
            raise ValueError(
                f"multiway_split_position ({split_position}) has no use without multiway=True in the config."
            )
        return split_position

    def _positions(
        self, padding_mask: Tensor | None, rows: Tensor | None, past: int, embedding: Tensor
    ) -> TokenPositions:
        total, padding_mask = past + embedding.size(1), marked(padding_mask)
        if padding_mask is not None and padding_mask.size(1) != total:
            raise ValueError(
                f"encoder_padding_mask covers {padding_mask.size(1)} tokens, but there are {total}, "
                f"{past} of them from earlier calls."
            )
        if past and (self.relative_position is not None or self.config.xpos_rel_pos):
            raise ValueError("incremental_state in an encoder knows no relative positions; encode the whole sequence.")
        in_scores = positions_in_scores(padding_mask, total, embedding.device)
        return TokenPositions(padding_mask, rows, in_scores, total, are_given=rows is not None)

    def _with_positions(
        self, embedding: Tensor, tokens: TokenPositions, padding: Tensor | None, past: int, split: int | None
    ) -> Tensor:
        counted = None if self.config.torchscale_compatible else padding  # TorchScale counts padding too
        rows = position_rows(tokens.rows, counted, start=past, x=embedding)
        x = self._add_positions(embedding, rows, sys.maxsize if tokens.are_given else tokens.total, split)
        return x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0)

    def _attention_inputs(
        self,
        tokens: TokenPositions,
        attn_mask: Tensor | None,
        split: int | None,
        sequence_slice: SequenceSlice | None,
        dtype: torch.dtype,
    ) -> AttentionInputs:
        positions, total = tokens.in_scores, tokens.total
        bias = tokens.bias(self.relative_position, positions.size(1))
        if attn_mask is not None:
            hidden = torch.zeros_like(attn_mask, dtype=dtype).masked_fill(attn_mask.bool(), torch.finfo(dtype).min / 2)
            bias = hidden[None, None] if bias is None else bias + hidden
        inputs = AttentionInputs(
            key_padding_mask=tokens.padding_mask if tokens.documents is None else None,
            bias=bias,
            documents=tokens.documents,
            xpos=xpos_for(self.spec, positions, causal=False, centre=total // 2, span=total, dtype=dtype),
            split_position=split,
            sequence_slice=sequence_slice,
        )
        inputs = with_row_bias(inputs, dtype)
        is_dense = self.spec.attention is not None and not self.spec.attention.segment_lengths
        return with_padding_bias(inputs, dtype) if is_dense else inputs


def _refuse_with_documents(*arguments: Any) -> None:
    if any(argument is not None for argument in arguments):
        raise ValueError(
            "incremental_state, positions, attn_mask and multiway_split_position have no place with document_starts."
        )


def _states(incremental_state: list[dict[str, Any]]) -> list[LayerState]:
    return [LayerState(layer.setdefault("self_attn", KeyValueCache())) for layer in incremental_state]
