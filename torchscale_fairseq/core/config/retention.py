"""Options of decoders with retention instead of self-attention."""

from dataclasses import dataclass, fields
from typing import Any

from ..ops.backend import AUTO, Names
from ..ops.retention_forms import RETENTION
from .architectures import EncoderDecoderConfig
from .bitnet import BitNetOptions
from .experts import ExpertOptions
from .option import Config, check_probability, check_range, nearest_divisor, option
from .transformer import DecoderSide, TransformerConfig

DECAYS = ("powers", "linspace")


def _as_in_transformers(name: str, **changes: Any) -> Any:
    """Reuse the Transformer config's field of this name, optionally overriding its metadata."""
    shared = {f.name: f for side in (TransformerConfig, DecoderSide) for f in fields(side)}[name]
    known = ("help", "choices", "alias", "core_only")
    return option(**{"default": shared.default, **{key: shared.metadata[key] for key in known}, **changes})


@dataclass(frozen=True, kw_only=True)
class RetentionSide(Config):
    """Options of a decoder with retention instead of self-attention."""

    decoder_embed_dim: int = _as_in_transformers("decoder_embed_dim")
    decoder_value_embed_dim: int = option(1296, "width of the values and of the gate of retention, in channels")
    decoder_retention_heads: int = option(3, "number of retention heads in each decoder layer")
    decoder_ffn_embed_dim: int = _as_in_transformers("decoder_ffn_embed_dim", default=1280)
    decoder_layers: int = _as_in_transformers("decoder_layers")
    decoder_normalize_before: bool | None = _as_in_transformers("decoder_normalize_before")
    chunkwise_recurrent: bool = option(
        False,
        (
            "use the chunkwise form of retention at every length (default: only where it is faster than "
            "the parallel form)"
        ),
    )
    recurrent_chunk_size: int = option(128, "tokens per chunk of the chunkwise form; affects speed and memory only")
    retention_decay: str = option(
        "powers",
        (
            "decay gamma of each head. powers: 1 - 2^(-5 - head), with heads counted from 0; linspace: 1 - gamma is "
            "1/32 for the first head and 1/512 for the last, and is spaced geometrically between them"
        ),
        choices=DECAYS,
    )
    retention_backend: str = option(
        "auto",
        (
            "implementation of retention over several tokens: torch, fla or auto. fla, flash-linear-attention's "
            "kernel, needs a GPU and fp16 or bf16. auto is fla if it is installed and supports the batch, and torch "
            "otherwise"
        ),
        choices=Names(RETENTION, AUTO),
    )
    share_decoder_input_output_embed: bool = _as_in_transformers("share_decoder_input_output_embed")

    def _check(self) -> None:
        super()._check()
        for name in ("embed_dim", "value_embed_dim", "retention_heads", "ffn_embed_dim", "layers"):
            check_range(f"decoder_{name}", getattr(self, f"decoder_{name}"), 1)
        check_range("recurrent_chunk_size", self.recurrent_chunk_size, 1)
        heads = self.decoder_retention_heads
        for name in ("decoder_embed_dim", "decoder_value_embed_dim"):
            width = getattr(self, name)
            if width % heads:
                raise self._error(
                    name,
                    f"{{{name}()}} must be divisible by {{decoder_retention_heads()}}",
                    {"decoder_retention_heads": nearest_divisor(width, heads)},
                    {name: width + heads - width % heads},
                )
        if self.decoder_embed_dim // heads % 2:
            raise self._error(
                "decoder_embed_dim",
                "retention rotates pairs of channels: {decoder_embed_dim} / {decoder_retention_heads} "
                f"({self.decoder_embed_dim} / {heads} = {self.decoder_embed_dim // heads}) must be even",
                {"decoder_embed_dim": self.decoder_embed_dim + heads},
            )

    def _refuse(self, *names: str, unless: dict[str, Any] | None = None) -> None:
        """Raise OptionError if one of these options is on, which ``unless`` would allow."""
        for name in names:
            if getattr(self, name):
                raise self._error(
                    name,
                    f"{{{name}}} has no place in a decoder with retention, which brings positions and norms of its own",
                    {name: None},
                    *([] if unless is None else [unless]),
                )


@dataclass(frozen=True, kw_only=True)
class RetNetConfig(RetentionSide, ExpertOptions, BitNetOptions):
    """Options of ``RetNetDecoder``. The norms are RMSNorms and the feed-forward networks gated linear units."""

    vocab_size: int = _as_in_transformers("vocab_size")
    no_output_layer: bool = _as_in_transformers("no_output_layer")
    activation_fn: str = _as_in_transformers("activation_fn")
    layernorm_eps: float = _as_in_transformers("layernorm_eps", default=1e-6)
    dropout: float = _as_in_transformers(
        "dropout", help="dropout probability after embeddings, retention and feed-forward networks"
    )
    activation_dropout: float = _as_in_transformers("activation_dropout")
    drop_path_rate: float = _as_in_transformers("drop_path_rate")
    no_scale_embedding: bool = _as_in_transformers("no_scale_embedding")
    layernorm_embedding: bool = _as_in_transformers("layernorm_embedding", help="normalise token embeddings")
    deepnorm: bool = option(False, "DeepNorm, for which RetNet is not designed; only with torchscale_compatible")
    subln: bool | None = option(None, "SubLN, which has no effect in RetNet; only with torchscale_compatible")
    max_target_positions: int = _as_in_transformers(
        "max_target_positions",
        help=("maximum length of the sequences that fairseq passes on, in tokens; the model itself has no limit"),
    )
    checkpoint_activations: bool = _as_in_transformers("checkpoint_activations")
    ffn_chunk_size: int = _as_in_transformers("ffn_chunk_size")
    compile: bool = _as_in_transformers("compile")
    torchscale_compatible: bool = _as_in_transformers("torchscale_compatible")

    def _check(self) -> None:
        super()._check()
        for name in ("dropout", "activation_dropout", "drop_path_rate"):
            check_probability(name, getattr(self, name))
        check_range("ffn_chunk_size", self.ffn_chunk_size, 0)
        check_range("max_target_positions", self.max_target_positions, 1)
        if self.vocab_size < -1 or self.vocab_size == 0:
            raise self._error(
                "vocab_size",
                "{vocab_size()} must be positive, or -1 for a model without embeddings",
                {"vocab_size": -1},
            )
        if not self.torchscale_compatible:
            self._refuse("deepnorm", "subln", unless={"torchscale_compatible": True})

    @property
    def decoder_pre_norm(self) -> bool:
        """Whether the norms are placed before the sublayers. TorchScale's deepnorm leaves them there unless
        decoder_normalize_before is off."""
        return self.decoder_normalize_before is not False

    @property
    def shares_output_embedding(self) -> bool:
        """Whether the output projection is the embedding."""
        return self.share_decoder_input_output_embed


@dataclass(frozen=True, kw_only=True)
class RetNetEncoderDecoderConfig(EncoderDecoderConfig, RetentionSide):
    """Options of an ``Encoder`` and a ``RetNetDecoder`` that attends to it."""

    subln_by_default = False

    def _check(self) -> None:
        super()._check()
        self._refuse("deepnorm", "subln", "decoder_learned_pos", "blockwise_causal_window")
