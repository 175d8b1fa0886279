"""The base of the encoder, the decoder and RetNet: embeddings, a list of layers, a norm and an output projection."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..component.relative_position_bias import RelativePositionBias


class StackBase(nn.Module):
    """A stack of layers. It has no constructor of its own, so that ``super().__init__`` of a model that also inherits
    from one of fairseq's classes reaches that class."""

    args: Any
    build_output_projection: Any

    def _set_layers(
        self,
        width: int,
        norm: Callable[[int], nn.Module],
        layers: int,
        build_layer: Callable[[int, bool], nn.Module],
        *,
        final_norm: bool,
    ) -> None:
        """Make the norms and the layers.

        Args:
            width: of a token's features.
            norm: makes a norm of a width.
            layers: how many.
            build_layer: makes a layer from its depth, from 0, and whether it has experts.
            final_norm: whether a norm follows the last layer.
        """
        args = self.args
        self.layernorm_embedding = norm(width) if args.layernorm_embedding else None
        self.layers = nn.ModuleList(build_layer(depth, has_experts(args, depth)) for depth in range(layers))
        self.num_layers = len(self.layers)
        self.layer_norm = norm(width) if final_norm else None

    def _set_embeddings(self, width: int, embed_tokens: nn.Module | None) -> None:
        self.dropout_module = nn.Dropout(self.args.dropout)
        self.embed_scale = 1.0 if self.args.no_scale_embedding else math.sqrt(width)
        self.embed_tokens: Any = embed_tokens

    def _set_output(self, given: nn.Module | None, *, wanted: bool = True) -> None:
        """Keep the given output projection, or build one if it is wanted and the config has a vocabulary."""
        if given is None and wanted and not self.args.no_output_layer and self.args.vocab_size > 0:
            given = self.build_output_projection(self.args)
        self.output_projection = given

    def _embed(
        self, tokens: Tensor | None, token_embedding: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The first layer's input, and scaled embeddings without positions."""
        if token_embedding is None:
            token_embedding = self.embed_tokens(tokens)
        x = embed = self.embed_scale * token_embedding
        if positions is not None:
            x = embed + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x), embed

    def _run(self, layer: nn.Module, x: Tensor, *inputs: Any, incremental_state: Any, **options: Any) -> Any:
        """The layer's output, with activations computed again in the backward pass if the config says so."""
        if self.args.checkpoint_activations and torch.is_grad_enabled() and incremental_state is None:
            return checkpoint(layer, x, *inputs, incremental_state=None, use_reentrant=False, **options)
        return layer(x, *inputs, incremental_state=incremental_state, **options)


class CausalStackBase(StackBase):
    """A stack that decodes, with or without a state of earlier tokens."""

    def is_first_step(self, incremental_state: Any) -> bool:
        """Whether the state says that a whole prompt comes."""
        return bool(incremental_state is not None and incremental_state.get("is_first_step", False))

    def output_layer(self, features: Tensor) -> Tensor:
        """Features to logits."""
        return features if self.output_projection is None else self.output_projection(features)

    def _finish(
        self, x: Tensor, states: list[Tensor], balance: list[Any], *, features_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """The last norm and the output layer, and the dictionary that goes with their output."""
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if not features_only:
            x = self.output_layer(x)
        return x, {"inner_states": states, "l_aux": balance, "attn": None}


def has_experts(args: Any, depth: int) -> bool:
    """Whether a layer, counted from 0, has experts."""
    return bool(args.moe_freq) and (depth + 1) % args.moe_freq == 0


def relative_bias_of(args: Any, heads: int) -> RelativePositionBias | None:
    """T5's bias, if the config has buckets for it."""
    if args.rel_pos_buckets <= 0 or args.max_rel_pos <= 0:
        return None
    return RelativePositionBias(num_buckets=args.rel_pos_buckets, max_distance=args.max_rel_pos, n_heads=heads)


def output_projection_of(args: Any, width: int, tied_to: nn.Embedding | None) -> nn.Linear:
    """From features to the vocabulary."""
    if tied_to is not None:
        projection = nn.Linear(tied_to.embedding_dim, tied_to.num_embeddings, bias=False)
        projection.weight = tied_to.weight
        return projection
    projection = nn.Linear(width, args.vocab_size, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection
