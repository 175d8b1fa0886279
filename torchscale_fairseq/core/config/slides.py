"""Options of encoders of whole slides."""

from collections.abc import Sequence
from dataclasses import dataclass

from .architectures import EncoderConfig
from .dilated import parse_integers
from .option import check_range, option

BRANCHES = 5
SHORTEST_SEGMENT = 1024
"""Tiles of the shortest segments."""


@dataclass(frozen=True, kw_only=True)
class SlideEncoderConfig(EncoderConfig):
    """Options of ``SlideEncoder``; the defaults are those of Prov-GigaPath's released model."""

    feature_dim: int = option(1536, "width of a tile's features")
    tile_size: int = option(256, "height and width of a tile in pixels")
    grid_size: int = option(
        1000, "number of tiles along each side of the square grid for which there are position embeddings"
    )
    max_slide_size: int = option(
        262144, "largest side of a slide in pixels; if segment_length is unset, segment lengths are derived from it"
    )
    segment_length: str | Sequence[int] | None = option(
        None, ("segment length in tiles, one value per branch (default: five lengths derived from max_slide_size)")
    )
    dilated_ratio: str | Sequence[int] | None = option(
        "[1,2,4,8,16]", "keep every r-th tile of a segment, one value of r per branch"
    )
    encoder_attention_heads: int = option(16, "number of attention heads in each encoder layer")
    global_pool: bool = option(False, "embed a slide by the mean of its tiles instead of by the class token")
    feature_layers: str | Sequence[int] | None = option(
        None,
        (
            "layers whose embeddings are concatenated, such as '[6,12]'; 0 is the input of the first layer"
            " (default: the output of the encoder)"
        ),
    )
    no_output_layer: bool = option(True, "a slide encoder has no projection to a vocabulary", core_only=True)

    def _check(self) -> None:
        super()._check()
        for name in ("feature_dim", "tile_size", "grid_size"):
            check_range(name, getattr(self, name), 1)
        if self.max_slide_size < 32 * self.tile_size:
            raise self._error(
                "max_slide_size",
                f"{{max_slide_size()}} must be at least 32 times {{tile_size()}}, for segments of {SHORTEST_SEGMENT} "
                "tiles",
                {"max_slide_size": 32 * self.tile_size},
            )
        if self.encoder_embed_dim % 4:
            raise self._error(
                "encoder_embed_dim",
                "{encoder_embed_dim()} must be a multiple of 4 for positions with a sine and a cosine of two axes",
                {"encoder_embed_dim": 4 * max(1, self.encoder_embed_dim // 4)},
            )
        if any(layer > self.encoder_layers for layer in self.chosen_layers):
            raise self._error(
                "feature_layers",
                "{feature_layers()} must not be above {encoder_layers()}",
                {"feature_layers": f"[{self.encoder_layers}]"},
            )
        if self.vocab_size != -1 or not self.no_output_layer:
            raise self._error(
                "vocab_size",
                "a slide encoder reads no words: it takes neither {vocab_size} nor an output layer",
                {"vocab_size": None, "no_output_layer": None},
            )

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Tiles per segment, one entry per branch."""
        if self.segment_length is not None:
            return super().segment_lengths
        return segments_for(self.max_slide_size, self.tile_size)

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        """The layers whose embeddings are concatenated; none for the output of the encoder."""
        return parse_integers("feature_layers", self.feature_layers, at_least=0, example="[6,12]")


def segments_for(max_slide_size: int, tile_size: int) -> tuple[int, ...]:
    """Five lengths, evenly spaced in their logarithms, from 1,024 tiles to a power of two of a whole slide's tiles.

    As Prov-GigaPath computes them (Nature 2024, doi:10.1038/s41586-024-07441-w, and its code).

    Args:
        max_slide_size: largest side of a slide in pixels.
        tile_size: side of a tile in pixels.
    """
    first = SHORTEST_SEGMENT.bit_length() - 1
    last = (max_slide_size**2 // tile_size**2).bit_length() - 1
    return tuple(int(2 ** (first + (last - first) * branch / (BRANCHES - 1))) for branch in range(BRANCHES))
