"""Options of encoders that read images."""

from collections.abc import Sequence
from dataclasses import dataclass

from .architectures import EncoderConfig
from .option import Config, check_range, option


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Config):
    """Options of encoders that read images."""

    img_size: int = option(224, "height and width of images in pixels")
    patch_size: int = option(16, "height and width of a patch in pixels")
    in_chans: int = option(3, "channels of an image", core_only=True)

    def _check(self) -> None:
        super()._check()
        for name in ("img_size", "patch_size", "in_chans"):
            check_range(name, getattr(self, name), 1)
        if self.img_size % self.patch_size:
            size = self.img_size - self.img_size % self.patch_size or self.patch_size
            raise self._error("img_size", "{img_size()} must be a multiple of {patch_size()}", {"img_size": size})

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.img_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class BEiT3Config(EncoderConfig, ImageOptions):
    """Options of ``BEiT3``."""

    multiway: bool = option(True, "separate feed-forward networks for images and for texts", core_only=True)
    no_output_layer: bool = option(True, "BEiT3 has no projection to the vocabulary", core_only=True)

    def _check(self) -> None:
        super()._check()
        if not (self.multiway and self.no_output_layer):
            raise self._error(
                "multiway",
                "BEiT3 is multiway, without output layer: it needs {multiway} and {no_output_layer}",
                {name: None for name in ("multiway", "no_output_layer") if not getattr(self, name)},
            )
        if self.share_encoder_input_output_embed:
            raise self._error(
                "share_encoder_input_output_embed",
                "{share_encoder_input_output_embed} has no place in BEiT3, which has no output layer",
                {"share_encoder_input_output_embed": None},
            )


LONGVIT_SEGMENTS = {
    1024: (64, 128, 256, 512, 1024),
    4096: (1024, 2048, 4096, 8192, 16384),
    8192: (1024, 4096, 8192, 16384, 65536),
    16384: (1024, 4096, 16384, 65536, 262144),
    32768: (1024, 4096, 32768, 262144, 1048576),
}
"""The authors' released segment lengths in patches, by image size in pixels."""


@dataclass(frozen=True, kw_only=True)
class LongViTConfig(EncoderConfig, ImageOptions):
    """Options of ``LongViT``; the defaults are those of the released small model."""

    img_size: int = option(1024, "height and width in pixels of the images for which position embeddings are built")
    patch_size: int = option(32, "height and width of a patch in pixels")
    segment_length: str | Sequence[int] | None = option(
        None, "segment length in patches, one value per branch (default: the released values for img_size)"
    )
    dilated_ratio: str | Sequence[int] | None = option(
        "[1,2,4,8,16]", "keep every r-th patch of a segment, one value of r per branch"
    )
    encoder_embed_dim: int = option(384, "width of the encoder in channels")
    encoder_attention_heads: int = option(16, "number of attention heads in each encoder layer")
    encoder_ffn_embed_dim: int = option(1536, "inner width of the encoder's feed-forward networks")
    normalize_output: bool = option(False, "apply a norm after the last layer", core_only=True)
    no_output_layer: bool = option(True, "LongViT has no projection to a vocabulary", core_only=True)

    def _check(self) -> None:
        super()._check()
        if self.vocab_size != -1 or not self.no_output_layer:
            raise self._error(
                "vocab_size",
                "LongViT reads no words: it takes neither {vocab_size} nor an output layer",
                {"vocab_size": None, "no_output_layer": None},
            )

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Patches per segment, one entry per branch: given, or released for the next size from img_size on."""
        if self.segment_length is not None:
            return super().segment_lengths
        sizes = [size for size in LONGVIT_SEGMENTS if size >= self.img_size] or [max(LONGVIT_SEGMENTS)]
        return LONGVIT_SEGMENTS[min(sizes)]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig, ImageOptions):
    """Options of ``ViT``; the defaults have the sizes of ViT-Base."""

    pooling: str = option(
        "class_token",
        "vector that stands for an image: the features of a class_token, or the mean of the patches' features",
        choices=("class_token", "mean"),
    )
    segment_length: str | Sequence[int] | None = option(None, "dilated attention is LongViT's", core_only=True)
    dilated_ratio: str | Sequence[int] | None = option(None, "dilated attention is LongViT's", core_only=True)
    normalize_output: bool = option(False, "apply a norm after the last layer", core_only=True)
    no_output_layer: bool = option(True, "ViT has no projection to a vocabulary", core_only=True)

    def _check(self) -> None:
        super()._check()
        if self.vocab_size != -1 or not self.no_output_layer:
            raise self._error(
                "vocab_size",
                "ViT reads no words: it takes neither {vocab_size} nor an output layer",
                {"vocab_size": None, "no_output_layer": None},
            )
        if self.segment_lengths:
            raise self._error(
                "segment_length",
                "{segment_length} is for dilated attention, and ViT's is dense; LongViT has it",
                {"segment_length": None, "dilated_ratio": None},
            )

    @property
    def has_class_token(self) -> bool:
        """Whether a class token stands before the patches."""
        return self.pooling == "class_token"
