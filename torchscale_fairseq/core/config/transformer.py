"""Options that encoder, decoder and encoder-decoder share, and those of each side."""

from dataclasses import dataclass

from ..layers.feed_forward import ACTIVATIONS
from ..layers.norm import NORMS
from ..ops.backend import Names
from ..ops.backends import ATTENTION
from .bitnet import BitNetOptions
from .experts import ExpertOptions
from .option import check_probability, check_range, even_divisions, nearest_divisor, option


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ExpertOptions, BitNetOptions):
    """Options that encoder, decoder and encoder-decoder share."""

    subln_by_default = True
    """SubLN is on unless deepnorm is."""

    vocab_size: int = option(-1, "size of the vocabulary; -1: a model without embeddings", core_only=True)
    no_output_layer: bool = option(False, "build no projection to the vocabulary", core_only=True)
    activation_fn: str = option("gelu", "activation function of the feed-forward networks", choices=tuple(ACTIVATIONS))
    gated_ffn: bool = option(False, "use gated linear units (GLU) without biases as feed-forward networks")
    norm: str = option("layernorm", "normalisation in all layers", choices=tuple(NORMS))
    layernorm_eps: float = option(1e-5, "epsilon that normalisation layers add to the variance")
    dropout: float = option(0.0, "dropout probability after embeddings, attention and feed-forward networks")
    attention_dropout: float = option(0.0, "dropout probability of attention weights")
    activation_dropout: float = option(
        0.0, "dropout probability after the activation of the feed-forward networks", alias="--relu-dropout"
    )
    drop_path_rate: float = option(
        0.0,
        (
            "stochastic depth: probability of skipping a sublayer of the last layer in training; the probability "
            "grows linearly from 0 at the first layer"
        ),
    )
    no_scale_embedding: bool = option(True, "do not multiply embeddings by the square root of their width")
    layernorm_embedding: bool = option(False, "normalise the sum of token and position embeddings")
    no_token_positional_embeddings: bool | None = option(
        None,
        "add no embeddings of absolute positions (default: on if xpos_rel_pos or rel_pos_buckets supplies positions)",
    )
    rel_pos_buckets: int = option(
        0,
        ("number of buckets of the T5 relative position bias, at least 4; needs max_rel_pos next to it; 0: no bias"),
    )
    max_rel_pos: int = option(
        0,
        (
            "distance in tokens from which the T5 relative position bias is constant. It must exceed half of "
            "rel_pos_buckets, which must be set too; 0: no bias"
        ),
    )
    xpos_rel_pos: bool = option(False, "use xPos (rotary positions with decay) in self-attention")
    xpos_scale_base: int = option(
        512,
        (
            "with xpos_rel_pos, the distance in tokens over which the scores of causal attention decay by one factor "
            "zeta (each channel pair has its own); larger values decay more slowly"
        ),
    )
    deepnorm: bool = option(False, "DeepNorm: post-norm, with scaled residual connections and scaled initialisation")
    subln: bool | None = option(
        None,
        (
            "SubLN: pre-norm with a second norm inside each sublayer, and scaled initialisation (default: "
            "on unless deepnorm is)"
        ),
    )
    bert_init: bool = option(
        False, ("initialise linear layers and embeddings from a normal distribution with standard deviation 0.02")
    )
    attention_backend: str | None = option(
        None,
        (
            "implementation of attention: sdpa (torch's fused kernels), naive (the written-out definition, slow) "
            "or flash_attn (the package flash-attn) (default: sdpa)"
        ),
        choices=Names(ATTENTION),
    )
    flash_attention: bool = option(
        False,
        (
            "TorchScale's spelling of attention_backend=flash_attn. With segment_length it has no effect, since sdpa "
            "includes a flash kernel"
        ),
    )
    checkpoint_activations: bool = option(False, "recompute each layer in the backward pass to save memory")
    ffn_chunk_size: int = option(
        0,
        (
            "compute feed-forward networks (not experts) this many tokens at a time, and recompute their "
            "activations in the backward pass, to save memory; 0: all tokens at once"
        ),
    )
    compile: bool = option(False, "compile the layers with torch.compile; step-by-step decoding is not compiled")
    torchscale_compatible: bool = option(
        False, "reproduce TorchScale's code where it departs from the papers (docs/parity.md)"
    )

    def _check(self) -> None:
        super()._check()
        for name in ("dropout", "attention_dropout", "activation_dropout", "drop_path_rate"):
            check_probability(name, getattr(self, name))
        for name in ("rel_pos_buckets", "max_rel_pos", "ffn_chunk_size"):
            check_range(name, getattr(self, name), 0)
        check_range("xpos_scale_base", self.xpos_scale_base, 1)
        if self.vocab_size < -1 or self.vocab_size == 0:
            raise self._error(
                "vocab_size",
                "{vocab_size()} must be positive, or -1 for a model without embeddings",
                {"vocab_size": -1},
            )
        if self.deepnorm and self.subln:
            raise self._error(
                "deepnorm",
                "{deepnorm} and {subln} cannot both be on: they place the norms differently",
                {"deepnorm": None},
                {"subln": None},
            )
        if (self.rel_pos_buckets > 0) != (self.max_rel_pos > 0):
            raise self._error(
                "rel_pos_buckets",
                "{rel_pos_buckets()} and {max_rel_pos()} belong together",
                self._working_bias(),
                {"rel_pos_buckets" if self.rel_pos_buckets else "max_rel_pos": None},
            )
        if self.has_relative_bias and (self.rel_pos_buckets < 4 or self.max_rel_pos <= self.rel_pos_buckets // 2):
            raise self._error(
                "rel_pos_buckets",
                "{rel_pos_buckets()} must be at least 4 and {max_rel_pos()} above half of it",
                self._working_bias(),
            )
        if self.flash_attention and self.attention_backend not in (None, "flash_attn"):
            raise self._error(
                "flash_attention",
                "{flash_attention=} contradicts {attention_backend=}",
                {"flash_attention": None},
                {"attention_backend": None},
            )

    def _working_bias(self) -> dict[str, int]:
        """Options of a relative position bias that works: the given values as far as they can stay."""
        buckets, distance = self.rel_pos_buckets, self.max_rel_pos
        if buckets < 4:
            buckets = min(32, 2 * (distance - 1)) if distance > 2 else 32
        if distance <= buckets // 2:
            distance = max(128, 4 * buckets)
        working = {"rel_pos_buckets": buckets, "max_rel_pos": distance}
        return {name: value for name, value in working.items() if value != getattr(self, name)}

    @property
    def uses_subln(self) -> bool:
        """Whether SubLN is on."""
        return self.subln_by_default and not self.deepnorm if self.subln is None else self.subln

    @property
    def has_relative_bias(self) -> bool:
        """Whether the T5 relative position bias is on."""
        return self.rel_pos_buckets > 0

    @property
    def has_absolute_positions(self) -> bool:
        """Whether embeddings of absolute positions are added."""
        if self.no_token_positional_embeddings is not None:
            return not self.no_token_positional_embeddings
        return self.torchscale_compatible or not (self.xpos_rel_pos or self.has_relative_bias)

    @property
    def backend(self) -> str:
        """The attention backend in use."""
        return "flash_attn" if self.flash_attention else self.attention_backend or "sdpa"

    def _check_stack(self, side: str) -> None:
        width, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_attention_heads")
        for name in ("embed_dim", "attention_heads", "ffn_embed_dim", "layers"):
            check_range(f"{side}_{name}", getattr(self, f"{side}_{name}"), 1)
        if width % heads:
            raise self._error(
                f"{side}_embed_dim",
                f"{{{side}_embed_dim()}} must be divisible by {{{side}_attention_heads()}}",
                {f"{side}_attention_heads": nearest_divisor(width, heads)},
            )
        if self.xpos_rel_pos and (width // heads) % 2:
            raise self._error(
                "xpos_rel_pos",
                f"{{xpos_rel_pos}} rotates pairs of channels: {{{side}_embed_dim}} / {{{side}_attention_heads}} "
                f"({width} / {heads} = {width // heads}) must be even",
                *even_divisions(f"{side}_attention_heads", width, heads),
                {"xpos_rel_pos": None},
            )

    def _pre_norm(self, side: str, *, follows_residual_scheme: bool) -> bool:
        """Whether the norms of one side stand before the sublayers."""
        asked: bool | None = getattr(self, f"{side}_normalize_before")
        if follows_residual_scheme and self.deepnorm:
            return False
        if follows_residual_scheme and self.uses_subln:
            return True
        return True if asked is None else asked

    def _check_placement(self, side: str) -> None:
        asked = getattr(self, f"{side}_normalize_before")
        if asked is None or self.torchscale_compatible:
            return
        if self.deepnorm and asked:
            raise self._error(
                "deepnorm",
                f"{{deepnorm}} is post-norm and contradicts {{{side}_normalize_before=}}",
                {"deepnorm": None},
                {f"{side}_normalize_before": None},
            )
        if self.uses_subln and not asked:
            raise self._error(
                "subln",
                f"{{subln}} is pre-norm and contradicts {{{side}_normalize_before=}}",
                {"subln": False},
                advice="{} for a plain post-norm model",
            )


@dataclass(frozen=True, kw_only=True)
class EncoderSide(TransformerConfig):
    encoder_embed_dim: int = option(768, "width of the encoder in channels")
    encoder_attention_heads: int = option(12, "number of attention heads in each encoder layer")
    encoder_ffn_embed_dim: int = option(3072, "inner width of the encoder's feed-forward networks")
    encoder_layers: int = option(12, "number of encoder layers")
    encoder_normalize_before: bool | None = option(
        None,
        ("place the encoder's norms before the sublayers (default: on unless deepnorm is, which is always post-norm)"),
    )
    encoder_moe_freq: int | None = option(None, "moe_freq of the encoder alone (default: that of moe_freq)")
    encoder_learned_pos: bool = option(False, "learn the encoder's absolute positions, instead of sinusoidal ones")
    normalize_output: bool = option(True, "apply a norm after the last layer of a pre-norm encoder", core_only=True)
    max_source_positions: int = option(1024, "maximum length of the source in tokens")
    multiway: bool = option(
        False,
        ("separate parameters for two modalities; multiway_split_position is the number of tokens of the first"),
        core_only=True,
    )

    def _check(self) -> None:
        super()._check()
        self._check_stack("encoder")
        self._check_placement("encoder")
        check_range("max_source_positions", self.max_source_positions, 1)

    @property
    def encoder_pre_norm(self) -> bool:
        """Whether the encoder's norms stand before its sublayers."""
        return self._pre_norm("encoder", follows_residual_scheme=True)

    @property
    def has_two_modalities(self) -> bool:
        """Whether feed-forward networks are doubled."""
        return self.multiway


@dataclass(frozen=True, kw_only=True)
class DecoderSide(TransformerConfig):
    decoder_embed_dim: int = option(768, "width of the decoder in channels")
    decoder_attention_heads: int = option(12, "number of attention heads in each decoder layer")
    decoder_ffn_embed_dim: int = option(3072, "inner width of the decoder's feed-forward networks")
    decoder_layers: int = option(12, "number of decoder layers")
    decoder_normalize_before: bool | None = option(
        None,
        ("place the decoder's norms before the sublayers (default: on unless deepnorm is, which is always post-norm)"),
    )
    decoder_moe_freq: int | None = option(None, "moe_freq of the decoder alone (default: that of moe_freq)")
    decoder_learned_pos: bool = option(False, "learn the decoder's absolute positions, instead of sinusoidal ones")
    share_decoder_input_output_embed: bool = option(
        False, "use one matrix as the decoder's embedding and output projection"
    )
    max_target_positions: int = option(1024, "maximum length of the target in tokens")
    blockwise_causal_window: int = option(
        0,
        (
            "blockwise causal attention in evaluation, for models with xpos_rel_pos: each token attends to"
            " its own block of half this many tokens and to the block before. Set it to the length of "
            "training to read longer texts; 0: attend to all earlier tokens"
        ),
    )

    def _check(self) -> None:
        super()._check()
        self._check_stack("decoder")
        self._check_placement("decoder")
        if self.blockwise_causal_window < 0 or self.blockwise_causal_window % 2:
            raise self._error(
                "blockwise_causal_window",
                "{blockwise_causal_window()} must be even, or 0 for full attention",
                {"blockwise_causal_window": max(0, self.blockwise_causal_window + 1)},
            )
        if self.blockwise_causal_window and not self.xpos_rel_pos:
            raise self._error(
                "blockwise_causal_window",
                "{blockwise_causal_window()} is for models with {xpos_rel_pos}, which this one lacks",
                {"blockwise_causal_window": None},
                {"xpos_rel_pos": True},
            )
        check_range("max_target_positions", self.max_target_positions, 1)

    @property
    def shares_output_embedding(self) -> bool:
        """Whether the output projection is the decoder's embedding."""
        return self.share_decoder_input_output_embed

    @property
    def decoder_pre_norm(self) -> bool:
        """Whether the decoder's norms stand before its sublayers.

        TorchScale's deepnorm and subln switch the encoder's placement alone (docs/parity.md).
        """
        return self._pre_norm("decoder", follows_residual_scheme=not self.torchscale_compatible)
