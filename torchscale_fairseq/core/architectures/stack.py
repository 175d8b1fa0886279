"""What encoder and decoder share: their options, and the way from tokens to vectors."""

import math
import sys

from torch import Tensor, nn

from ..layers.multiway import apply
from .blocks import Config, Side, SideOptions, check_length


class Stack(nn.Module):
    """The embeddings of one side; subclasses add the layers.

    Args:
        config: the options.
        side: "encoder" or "decoder".
        embed_tokens: token embedding; by default one is built if the config has a vocabulary (not under
            torchscale_compatible).
        embed_positions: module from position table rows (``ops.positions``) to vectors; by default built
            after the config likewise.
        is_encoder_decoder: the other side exists too.
    """

    def __init__(
        self,
        config: Config,
        side: Side,
        embed_tokens: nn.Embedding | None,
        embed_positions: nn.Module | None,
        *,
        is_encoder_decoder: bool,
    ):
        super().__init__()
        self.config = config
        self.options = options = SideOptions(config, side, is_encoder_decoder=is_encoder_decoder)
        self.embed_scale = 1.0 if config.no_scale_embedding else math.sqrt(options.width)
        self.embed_tokens = embed_tokens if embed_tokens is not None else options.token_embedding()
        self.embed_positions = embed_positions if embed_positions is not None else options.default_position_embedding()
        self.layernorm_embedding = options.norm() if config.layernorm_embedding else None
        self.dropout = nn.Dropout(config.dropout)

    @property
    def position_limit(self) -> int:
        """Longest sequence in tokens, as far as positions limit it."""
        return self.options.max_positions if self.embed_positions is not None else sys.maxsize

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        if self.embed_tokens is None:
            raise ValueError(
                f"this {self.options.side} was built without embed_tokens: give token_embeddings, or build it with "
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
            check_length(self.options, self.embed_positions, rows, total)
            x = x + apply(self.embed_positions, rows, split_position).to(x.dtype)
        if self.layernorm_embedding is not None:
            x = apply(self.layernorm_embedding, x, split_position)
        return self.dropout(x)

    def _tied_embedding(self, option: str, *, shared: bool) -> nn.Embedding | None:
        """The embedding that the output projection shares, if it does."""
        if shared and self.embed_tokens is None:
            raise ValueError(f"{option} needs embed_tokens, the embedding to share.")
        return self.embed_tokens if shared else None
