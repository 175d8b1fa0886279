"""An encoder of whole slides: tiles with coordinates in, one embedding per slide out.

Prov-GigaPath, Nature 2024, doi:10.1038/s41586-024-07441-w, with LongNet (arXiv:2307.02486) over the tiles of a slide.
Parameters are named as in its released weights.
"""

import torch
from torch import Tensor, nn

from ..config import SlideEncoderConfig
from ..errors import InputError
from ..ops.grid_positions import axis_positions, grid_positions
from ..parallel.exchange import all_sum
from ..parallel.sequence import SequenceSlice
from .longnet import LongNetEncoder

STD = 0.02
NORM_EPS = 1e-6


class TileEmbedding(nn.Module):
    """A linear map of tiles' features to the encoder's width.

    Args:
        feature_dim: values in the features of a tile.
        width: of the encoder.
    """

    def __init__(self, feature_dim: int, width: int):
        super().__init__()
        self.proj = nn.Linear(feature_dim, width)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tiles, feature_dim) to (batch, tiles, width)."""
        embedded: Tensor = self.proj(features)
        return embedded


class SlideEncoder(nn.Module):
    """A LongNet encoder over a class token and the tiles of a slide, with fixed positions on a grid.

    Args:
        config: the options.
    """

    axis_positions: Tensor

    def __init__(self, config: SlideEncoderConfig):
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        self.patch_embed = TileEmbedding(config.feature_dim, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.cls_token, std=STD)
        self.encoder = LongNetEncoder(config)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.register_buffer("axis_positions", axis_positions(config.grid_size, width // 2), persistent=False)

    @property
    def embedding_dim(self) -> int:
        """Width of a slide's embedding."""
        return self.config.encoder_embed_dim * max(1, len(self.config.chosen_layers))

    def forward(
        self,
        features: Tensor,
        coords: Tensor,
        padding_mask: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
    ) -> Tensor:
        """Embed slides.

        Args:
            features: (batch, tiles, feature_dim).
            coords: (batch, tiles, 2), pixels of each tile's corner, x and y, at the resolution of the tiles.
            padding_mask: (batch, tiles), True for padding, which follows a slide's tiles; None for none.
            sequence_slice: the class token and the tiles are this process's slice of longer rows, whose padding it
                knows. The class token is the first token of the first process.

        Returns:
            (batch, embedding_dim), equal in all processes that share slides. In the backward pass each of them adds
            its own loss, so that each should compute its share of the loss.

        Raises:
            InputError: features have another width, or a tile lies outside the grid.
        """
        return torch.cat(self.layer_embeddings(features, coords, padding_mask, sequence_slice), -1)

    def layer_embeddings(
        self,
        features: Tensor,
        coords: Tensor,
        padding_mask: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
    ) -> list[Tensor]:
        """One embedding (batch, width) for each of ``feature_layers``, or that of the encoder's output; arguments as
        for ``forward``."""
        x = self._embed(features, coords)
        if sequence_slice is None or sequence_slice.rank == 0:
            x = torch.cat((self.cls_token.to(x.dtype).expand(x.size(0), -1, -1), x), 1)
        else:
            x = x + 0.0 * self.cls_token.to(x.dtype)  # DDP waits for a gradient of each parameter in each process
        if padding_mask is not None:
            padding_mask = torch.nn.functional.pad(padding_mask, (1, 0), value=False)
        layers = self.config.chosen_layers
        found = self.encoder(
            None, padding_mask, token_embeddings=x, return_all_hiddens=bool(layers), sequence_slice=sequence_slice
        )
        states = [found["encoder_states"][layer] for layer in layers] or [found["encoder_out"]]
        return [self._pool(state, padding_mask, sequence_slice) for state in states]

    def _embed(self, features: Tensor, coords: Tensor) -> Tensor:
        width = self.config.feature_dim
        if features.size(-1) != width:
            raise InputError(
                f"tiles have features of {features.size(-1)} values, but feature_dim is {width}; "
                f"build the model with feature_dim={features.size(-1)}."
            )
        x: Tensor = self.patch_embed(features)
        cells = (coords // self.config.tile_size).long()
        self._check_cells(cells)
        return x + grid_positions(cells, self.axis_positions).to(x.dtype)

    def _check_cells(self, cells: Tensor) -> None:
        grid, size = self.config.grid_size, self.config.tile_size
        if cells.numel() and (int(cells.min()) < 0 or int(cells.max()) >= grid):
            worst = int(cells.max()) if int(cells.max()) >= grid else int(cells.min())
            raise InputError(
                f"a tile has the coordinate {worst * size} (in pixels), which lies outside the grid of grid_size "
                f"({grid}) tiles of tile_size ({size}) pixels; check the unit of the coordinates, or "
                + (f"give grid_size={worst + 1}." if worst >= grid else "shift them so that none is negative.")
            )

    def _pool(self, x: Tensor, padding_mask: Tensor | None, sequence_slice: SequenceSlice | None) -> Tensor:
        """(batch, tokens, width) to (batch, width)."""
        if not self.config.global_pool:
            first: Tensor = self.norm(x[:, 0])
            return first if sequence_slice is None else _from_first_process(first, sequence_slice)
        weight = _tile_weights(x, padding_mask, sequence_slice)
        total, count = (x * weight).sum(1), weight.sum(1)
        if sequence_slice is not None:
            total, count = all_sum(total, sequence_slice.group), all_sum(count, sequence_slice.group)
        mean: Tensor = self.norm(total / count.clamp_min(1.0))
        return mean


def _from_first_process(x: Tensor, sequence_slice: SequenceSlice) -> Tensor:
    return all_sum(x if sequence_slice.rank == 0 else 0.0 * x, sequence_slice.group)


def _tile_weights(x: Tensor, padding_mask: Tensor | None, sequence_slice: SequenceSlice | None) -> Tensor:
    """(batch, tokens, 1), 1 for tiles, 0 for padding and the class token."""
    weight = x.new_ones(*x.shape[:2], 1)
    if sequence_slice is not None:
        padding_mask = sequence_slice.padding_mask()
    if padding_mask is not None:
        weight = weight.masked_fill(padding_mask.to(x.device).unsqueeze(-1), 0.0)
    if sequence_slice is None or sequence_slice.rank == 0:
        weight[:, 0] = 0.0
    return weight


class SlideClassifier(nn.Module):
    """A slide's embedding to scores.

    Args:
        config: of the slide encoder.
        num_classes: scores.
    """

    def __init__(self, config: SlideEncoderConfig, num_classes: int):
        super().__init__()
        self.model = SlideEncoder(config)
        self.head = nn.Linear(self.model.embedding_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=STD, a=-STD, b=STD)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        features: Tensor,
        coords: Tensor,
        padding_mask: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
    ) -> Tensor:
        """Arguments of ``SlideEncoder.forward`` to (batch, num_classes)."""
        scores: Tensor = self.head(self.model(features, coords, padding_mask, sequence_slice))
        return scores
