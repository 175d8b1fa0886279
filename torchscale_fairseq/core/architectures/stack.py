"""The base of every encoder and decoder: embeddings, layers, final norm and output projection."""

import math
import sys

from torch import Tensor, nn

from ..layers.embedding import TextEmbedding
from ..layers.multiway import apply
from ..ops.positions import PADDING_POSITION
from .factory import LayerFactory
from .initialize import initialize
from .layer import Layer
from .layer_sequence import LayerSequence
from .positions import check_length
from .spec import AnyConfig, LayerSpec


class Stack(nn.Module):
    """One side of a model. Subclasses say what a layer is (``build_layer``) and run the layers.

    ``layer_factory``, ``build_layer``, ``build_positions`` and ``build_output_projection`` may be overridden.

    Args:
        config: the options.
        spec: what the layers are made of.
        embed_tokens: token embedding; by default one is built if the config has a vocabulary (not under
            torchscale_compatible).
        embed_positions: module from position table rows (``ops.positions``) to vectors; by default built
            after the config likewise.
    """

    def __init__(
        self, config: AnyConfig, spec: LayerSpec, embed_tokens: nn.Embedding | None, embed_positions: nn.Module | None
    ):
        super().__init__()
        self.config: AnyConfig = config
        self.spec = spec
        self.factory = factory = self.layer_factory(spec)
        self.embed_scale = 1.0 if config.no_scale_embedding else math.sqrt(spec.width)
        self.embed_tokens = embed_tokens if embed_tokens is not None else self._token_embedding()
        self.embed_positions = embed_positions if embed_positions is not None else self.build_positions()
        self.layernorm_embedding = factory.norm() if config.layernorm_embedding else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = LayerSequence(self.build_layer(factory, depth) for depth in range(spec.layers))
        self.layer_norm = factory.norm() if spec.last_norm else None

    def layer_factory(self, spec: LayerSpec) -> LayerFactory:
        """Builds the parts of this side's layers."""
        return LayerFactory(spec)

    def build_layer(self, factory: LayerFactory, depth: int) -> Layer:
        """Layer ``depth``, counted from 0."""
        raise NotImplementedError

    def build_positions(self) -> nn.Module | None:
        """Absolute positions for a model that is given none; TorchScale leaves that to the caller."""
        return None if self._leaves_embeddings_to_callers else self.factory.position_embedding()

    def build_output_projection(self, tied_to: nn.Embedding | None) -> nn.Module:
        """Projection to the vocabulary, drawn from N(0, 1 / width), or the embedding it shares."""
        if tied_to is not None:
            projection = nn.Linear(tied_to.embedding_dim, tied_to.num_embeddings, bias=False)
            projection.weight = tied_to.weight
            return projection
        projection = nn.Linear(self.spec.width, self.config.vocab_size, bias=False)
        nn.init.normal_(projection.weight, std=self.spec.width**-0.5)
        return projection

    def _output_projection(self, given: nn.Module | None, option: str, *, shared: bool) -> nn.Module | None:
        """The one that is given, or by default one that is built if the config has a vocabulary.

        Args:
            given: by the caller.
            option: shares the embedding with the projection.
            shared: the option is on.
        """
        if given is not None or self.config.no_output_layer or self.config.vocab_size < 0:
            return given
        if shared and self.embed_tokens is None:
            raise ValueError(f"{option} needs embed_tokens, the embedding to share.")
        return self.build_output_projection(self.embed_tokens if shared else None)

    def _finish(self, *, one_region: bool = False, uneven: bool = False) -> None:
        """Initialise, and compile the layers if the config asks for it, as ``LayerSequence.compile_layers`` says."""
        initialize(self.spec, self, self.layers)
        if self.config.compile:
            self.layers.compile_layers(together=one_region, uneven=uneven)

    @property
    def position_limit(self) -> int:
        """Longest sequence in tokens, as far as positions limit it."""
        if self.embed_positions is None or self.spec.positions is None:
            return sys.maxsize
        return self.spec.positions.longest

    @property
    def _leaves_embeddings_to_callers(self) -> bool:
        return self.config.vocab_size < 0 or self.config.torchscale_compatible

    def _token_embedding(self) -> TextEmbedding | None:
        if self._leaves_embeddings_to_callers:
            return None
        return TextEmbedding(self.config.vocab_size, self.spec.width, padding_idx=PADDING_POSITION)

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        if self.embed_tokens is None:
            raise ValueError(
                f"this {self.spec.side} was built without embed_tokens: give token_embeddings, or build it with "
                "embed_tokens=TextEmbedding(vocab_size, width)."
            )
        return self.embed_tokens(tokens)

    def _add_positions(self, x: Tensor, rows: Tensor, total: int, split_position: int | None = None) -> Tensor:
        """Positions, norm and dropout on scaled embeddings, (batch, seq, width).

        Args:
            rows: (batch or 1, seq), rows of the position table.
            total: the tokens of a sequence, padding and those of earlier steps included.
            split_position: tokens of the first modality.
        """
        if self.embed_positions is not None:
            check_length(self.spec, self.embed_positions, rows, total)
            x = x + apply(self.embed_positions, rows, split_position).to(x.dtype)
        if self.layernorm_embedding is not None:
            x = apply(self.layernorm_embedding, x, split_position)
        return self.dropout(x)
