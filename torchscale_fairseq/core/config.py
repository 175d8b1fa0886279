"""The options of every architecture: declared once, typed, documented and checked on construction.

Field names are TorchScale's. A field that is ``None`` is decided by the others; the properties below the
fields give the decision, so that ``dataclasses.replace`` can change any field later.
"""

import ast
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import did_you_mean

ACTIVATIONS = ("gelu", "relu", "swish")
ATTENTION_BACKENDS = ("sdpa", "naive", "flash_attn")
NORMS = ("layernorm", "rmsnorm")
ROUTING_POLICIES = ("all", "sampling", "random")
EXPERT_CLIPS = ("sparse", "plain")
EXPERT_GRADIENTS = ("world_size", "sqrt_world_size")
DECAYS = ("powers", "linspace")
RETENTION_BACKENDS = ("auto", "torch", "fla")
BITNET_SCHEMES = ("b1.58", "b1")
BITNET_RECIPES = ("faq", "paper")


def option(
    default: Any, help: str, *, choices: Sequence[str] | None = None, alias: str | None = None, core_only: bool = False
) -> Any:
    """A config field.

    Args:
        default: its value when the user says nothing.
        help: shown by ``--help`` and in docs/options.md; says the unit where there is one.
        choices: the values it takes, if they can be listed.
        alias: a second spelling of its command line flag.
        core_only: has no command line flag, since fairseq's data or task decide it.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "alias": alias, "core_only": core_only})


EXPERT_OPTIONS = (
    "moe_expert_count",
    "moe_expert_ffn_dim",
    "moe_top_k",
    "moe_top1_expert",
    "moe_dropless",
    "use_xmoe",
    "moe_routing_dim",
    "moe_freeze_routing",
)
"""Options that mean nothing in a model without experts."""


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What every config shares: checking of names, types and ranges."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Config":
        _refuse_unknown_keywords(cls.__name__, [f.name for f in fields(cls)], args, kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in fields(self):
            _check_value(type(self).__name__, f.name, getattr(self, f.name), hints[f.name], f.metadata["choices"])
        self._check()

    def _check(self) -> None:
        """Conditions between fields; each class extends its parents'."""


def _refuse_unknown_keywords(owner: str, known: list[str], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    if args:
        raise TypeError(f"{owner} takes keyword arguments only, such as vocab_size=64000.")
    for name in kwargs:
        if name not in known:
            hint = did_you_mean(name, known) or f"; its options are {', '.join(known)}."
            raise TypeError(f"{owner} has no option {name}{hint}")


def _check_value(owner: str, name: str, value: Any, hint: Any, choices: Sequence[str] | None) -> None:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    ok = any(
        value is None
        if kind in (None, types.NoneType)
        else isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind is float
        else isinstance(value, typing.get_origin(kind) or kind) and not (kind is int and isinstance(value, bool))
        for kind in allowed
    )
    if not ok:
        wanted = " or ".join("None" if k is types.NoneType else k.__name__ for k in allowed)
        raise TypeError(f"{owner}: {name} must be {wanted}, got {value!r}.")
    if choices is not None and value is not None and value not in choices:
        raise ValueError(f"{owner}: {name} ({value!r}) must be one of {', '.join(choices)}.")


def _check_range(name: str, value: float, low: float, high: float | None = None) -> None:
    if value < low or (high is not None and value >= high):
        bound = f"at least {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} ({value}) must be {bound}.")


@dataclass(frozen=True, kw_only=True)
class _ExpertOptions(_Config):
    """Options of mixtures of experts."""

    moe_freq: int = option(0, "every so many layers one has experts; 0: none has")
    moe_expert_count: int = option(0, "experts per layer that has them")
    moe_expert_ffn_dim: int | None = option(
        None, "inner width of an expert; unset: that of the other feed-forward networks"
    )
    moe_top_k: int | None = option(None, "experts per token; unset: 2")
    moe_top1_expert: bool = option(False, "TorchScale's spelling of moe_top_k=1")
    moe_capacity_factor: float = option(
        1.0, "places per expert in training, relative to an even share of all tokens' choices"
    )
    moe_dropless: bool = option(False, "a place for every token in training too")
    moe_eval_capacity_token_fraction: float | None = option(
        None,
        "places per expert in evaluation, as a fraction of the tokens; negative: as in training; unset: dropless "
        "(0.25 with torchscale_compatible)",
    )
    moe_second_expert_policy: str | None = option(
        None,
        "how experts after the first are chosen in training: the best of them, drawn by score, or the best kept by "
        "chance; unset: all (random with torchscale_compatible)",
        choices=ROUTING_POLICIES,
    )
    moe_normalize_gate_prob_before_dropping: bool | None = option(
        None, "the weights of a token's experts sum to one before some are dropped, not after; unset: with use_xmoe"
    )
    moe_batch_prioritized_routing: bool = option(False, "tokens queue for experts by their largest gate")
    moe_gating_use_fp32: bool = option(False, "route in float32 under a lower precision")
    use_xmoe: bool = option(False, "X-MoE's router: cosine similarity in a low dimension")
    moe_routing_dim: int | None = option(
        None, "dimension of X-MoE's router; unset: half the experts, at least 4 (16 with torchscale_compatible)"
    )
    moe_expert_dropout: float | None = option(
        None, "dropout after the activation in experts; unset: activation_dropout"
    )
    moe_freeze_routing: bool = option(False, "routers do not learn, for fine-tuning")
    moe_normalize_expert_grad: str = option(
        "world_size", "what gradients of experts are divided by with several processes", choices=EXPERT_GRADIENTS
    )
    moe_clip: str = option(
        "sparse",
        "how experts count in the norm by which gradients are clipped: by 1 / moe_expert_count (SparseClip), or as "
        "all else",
        choices=EXPERT_CLIPS,
    )

    def _check(self) -> None:
        super()._check()
        for side in self._sides:
            freq, layers = self._expert_freq(side), getattr(self, f"{side}_layers")
            _check_range("moe_freq", freq, 0)
            if freq > layers:
                raise ValueError(
                    f"moe_freq ({freq}) is above {side}_layers ({layers}), so that no layer would have experts; use a "
                    "lower one, or 0 for none."
                )
        if not self.has_experts:
            for name in EXPERT_OPTIONS:
                value = getattr(self, name)
                if value not in (None, False, 0):
                    raise ValueError(f"{name} ({value}) has no use without experts; give moe_freq (2, say) too.")
            return
        if self.moe_expert_count < 1:
            raise ValueError(
                f"moe_freq asks for experts: moe_expert_count ({self.moe_expert_count}) must be at least 1."
            )
        if self.moe_top1_expert and self.moe_top_k not in (None, 1):
            raise ValueError(f"moe_top1_expert contradicts moe_top_k ({self.moe_top_k}); give one of them.")
        if not 1 <= self.expert_top_k <= self.moe_expert_count:
            raise ValueError(
                f"moe_top_k ({self.expert_top_k}) must be between 1 and moe_expert_count ({self.moe_expert_count})."
            )
        if self.moe_capacity_factor <= 0:
            raise ValueError(f"moe_capacity_factor ({self.moe_capacity_factor}) must be above 0.")
        fraction = self.moe_eval_capacity_token_fraction
        if fraction is not None and (fraction == 0 or fraction > 1):
            raise ValueError(
                f"moe_eval_capacity_token_fraction ({fraction}) must be in (0, 1], or negative for the capacity of "
                "training."
            )
        for name in ("moe_expert_ffn_dim", "moe_routing_dim"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1)
        if self.moe_expert_dropout is not None:
            _check_range("moe_expert_dropout", self.moe_expert_dropout, 0.0, 1.0)
        compatible: bool = getattr(self, "torchscale_compatible")  # noqa: B009 - a field of the classes below
        if self.moe_routing_dim is not None and (compatible or not self.use_xmoe):
            raise ValueError(
                f"moe_routing_dim ({self.moe_routing_dim}) belongs to use_xmoe without torchscale_compatible."
            )
        if getattr(self, "multiway", False):
            raise ValueError("multiway and moe_freq cannot both be on: both replace the feed-forward network.")

    def _expert_freq(self, side: str) -> int:
        """Every so many layers of a side one has experts; 0: none."""
        own = getattr(self, f"{side}_moe_freq", None)
        return self.moe_freq if own is None else int(own)

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return any(self._expert_freq(side) > 0 for side in self._sides)

    @property
    def _sides(self) -> list[str]:
        return [side for side in ("encoder", "decoder") if hasattr(self, f"{side}_layers")]

    @property
    def expert_top_k(self) -> int:
        """Experts per token."""
        return 1 if self.moe_top1_expert else self.moe_top_k or 2


@dataclass(frozen=True, kw_only=True)
class _BitNetOptions(_Config):
    """Options of quantised linear layers."""

    bitnet: str | None = option(
        None,
        "BitNet: weights of attention, retention and feed-forward networks are -1, 0 or 1 times a scale (b1.58), or "
        "-1 or 1 (b1), and activations have eight bits",
        choices=BITNET_SCHEMES,
    )
    bitnet_recipe: str | None = option(
        None,
        "details of bitnet: those of the authors' later notes and code, or of the papers; unset: faq",
        choices=BITNET_RECIPES,
    )
    bitnet_packed: bool = option(False, "weights are packed by scripts/convert/pack_bitnet.py, and are not trained")

    def _check(self) -> None:
        super()._check()
        for name in ("bitnet_recipe", "bitnet_packed"):
            if getattr(self, name) and self.bitnet is None:
                raise ValueError(f"{name} ({getattr(self, name)}) has no use without bitnet; give bitnet=b1.58 too.")
        chunk: int = getattr(self, "ffn_chunk_size")  # noqa: B009 - a field of the classes below
        if chunk and self.bitnet == "b1" and self.bitnet_recipe == "paper":
            raise ValueError(
                f"ffn_chunk_size ({chunk}) would change bitnet=b1 with bitnet_recipe=paper, which quantises the "
                "activations of all tokens by one scale; use bitnet_recipe=faq, or ffn_chunk_size=0."
            )


@dataclass(frozen=True, kw_only=True)
class _TransformerConfig(_ExpertOptions, _BitNetOptions):
    """Options that encoder, decoder and encoder-decoder share."""

    vocab_size: int = option(-1, "size of the vocabulary; -1 for a model without embeddings", core_only=True)
    no_output_layer: bool = option(False, "build no projection to the vocabulary", core_only=True)
    activation_fn: str = option("gelu", "activation of the feed-forward networks", choices=ACTIVATIONS)
    gated_ffn: bool = option(False, "gated linear units (no biases) as feed-forward networks")
    norm: str = option("layernorm", "kind of all normalisations", choices=NORMS)
    layernorm_eps: float = option(1e-5, "epsilon of the normalisations")
    dropout: float = option(0.0, "dropout after embeddings, attention and feed-forward networks")
    attention_dropout: float = option(0.0, "dropout of attention weights")
    activation_dropout: float = option(
        0.0, "dropout after the activation of the feed-forward networks", alias="--relu-dropout"
    )
    drop_path_rate: float = option(
        0.0, "probability to skip a sublayer in the last layer; earlier layers get linearly less"
    )
    no_scale_embedding: bool = option(True, "do not multiply embeddings by the square root of their width")
    layernorm_embedding: bool = option(False, "normalise the sum of token and position embeddings")
    no_token_positional_embeddings: bool | None = option(
        None, "no absolute positions; unset: none exactly when xPos or the relative bias supplies positions"
    )
    rel_pos_buckets: int = option(0, "buckets of the T5 relative position bias; 0 for none")
    max_rel_pos: int = option(0, "distance in tokens from which on all keys share the last bucket; 0 for none")
    xpos_rel_pos: bool = option(False, "xPos (rotary positions with decay) in self-attention")
    xpos_scale_base: int = option(512, "tokens over which xPos decays by its factor zeta")
    deepnorm: bool = option(False, "DeepNorm: post-norm, scaled residual, scaled initialisation")
    subln: bool | None = option(
        None,
        "SubLN: pre-norm, second norm inside each sublayer, scaled initialisation; unset: on unless deepnorm",
    )
    bert_init: bool = option(False, "initialise linear layers and embeddings from N(0, 0.02)")
    attention_backend: str | None = option(None, "implementation of attention; unset: sdpa", choices=ATTENTION_BACKENDS)
    flash_attention: bool = option(
        False,
        "TorchScale's spelling of attention_backend=flash_attn; with segment_length, where TorchScale demands it, it "
        "changes nothing: sdpa has flash attention of its own",
    )
    checkpoint_activations: bool = option(False, "recompute each layer in the backward pass to save memory")
    ffn_chunk_size: int = option(
        0,
        "tokens at a time in feed-forward networks (not in experts), whose inner activations are recomputed in the "
        "backward pass to save memory; 0: all at once",
    )
    compile: bool = option(False, "compile the layers with torch.compile (not while decoding step by step)")
    torchscale_compatible: bool = option(
        False, "reproduce TorchScale's code where it departs from the papers (docs/parity.md)"
    )

    def _check(self) -> None:
        super()._check()
        for name in ("dropout", "attention_dropout", "activation_dropout", "drop_path_rate"):
            _check_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("rel_pos_buckets", "max_rel_pos", "ffn_chunk_size"):
            _check_range(name, getattr(self, name), 0)
        _check_range("xpos_scale_base", self.xpos_scale_base, 1)
        if self.vocab_size < -1 or self.vocab_size == 0:
            raise ValueError(f"vocab_size ({self.vocab_size}) must be positive, or -1 for a model without embeddings.")
        if self.deepnorm and self.subln:
            raise ValueError("deepnorm and subln cannot both be on: they place the norms differently; drop one.")
        if (self.rel_pos_buckets > 0) != (self.max_rel_pos > 0):
            raise ValueError(
                f"rel_pos_buckets ({self.rel_pos_buckets}) and max_rel_pos ({self.max_rel_pos}) belong together: "
                "give both (32 and 128, say) or neither."
            )
        if self.has_relative_bias and (self.rel_pos_buckets < 4 or self.max_rel_pos <= self.rel_pos_buckets // 2):
            raise ValueError(
                f"rel_pos_buckets ({self.rel_pos_buckets}) must be at least 4 and max_rel_pos ({self.max_rel_pos}) "
                "above half of it."
            )
        if self.flash_attention and self.attention_backend not in (None, "flash_attn"):
            raise ValueError(
                f"flash_attention=True contradicts attention_backend={self.attention_backend}; give one of them."
            )

    @property
    def uses_subln(self) -> bool:
        """Whether SubLN is on."""
        return not self.deepnorm if self.subln is None else self.subln

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
            _check_range(f"{side}_{name}", getattr(self, f"{side}_{name}"), 1)
        if width % heads:
            raise ValueError(
                f"{side}_embed_dim ({width}) must be divisible by {side}_attention_heads ({heads}); "
                f"use {_nearest_divisor(width, heads)} heads."
            )
        if self.xpos_rel_pos and (width // heads) % 2:
            raise ValueError(
                f"xpos_rel_pos rotates pairs of channels: {side}_embed_dim / {side}_attention_heads "
                f"({width} / {heads} = {width // heads}) must be even."
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
            raise ValueError(f"deepnorm is post-norm and contradicts {side}_normalize_before=True; drop one.")
        if self.uses_subln and not asked:
            raise ValueError(
                f"subln is pre-norm and contradicts {side}_normalize_before=False; "
                "give subln=False for a plain post-norm model."
            )


def _nearest_divisor(width: int, heads: int) -> int:
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(h - heads))


@dataclass(frozen=True, kw_only=True)
class _EncoderSide(_TransformerConfig):
    encoder_embed_dim: int = option(768, "width of the encoder")
    encoder_attention_heads: int = option(12, "attention heads of the encoder")
    encoder_ffn_embed_dim: int = option(3072, "inner width of the encoder's feed-forward networks")
    encoder_layers: int = option(12, "layers of the encoder")
    encoder_normalize_before: bool | None = option(
        None, "pre-norm encoder; unset: pre-norm unless deepnorm, which is always post-norm"
    )
    encoder_moe_freq: int | None = option(None, "moe_freq of the encoder; unset: moe_freq")
    encoder_learned_pos: bool = option(False, "learned instead of sinusoidal positions in the encoder")
    normalize_output: bool = option(True, "norm after the last layer of a pre-norm encoder", core_only=True)
    max_source_positions: int = option(1024, "longest source in tokens")
    multiway: bool = option(
        False, "separate parameters for two modalities, told apart by multiway_split_position", core_only=True
    )

    def _check(self) -> None:
        super()._check()
        self._check_stack("encoder")
        self._check_placement("encoder")
        _check_range("max_source_positions", self.max_source_positions, 1)

    @property
    def encoder_pre_norm(self) -> bool:
        """Whether the encoder's norms stand before its sublayers."""
        return self._pre_norm("encoder", follows_residual_scheme=True)


@dataclass(frozen=True, kw_only=True)
class _DecoderSide(_TransformerConfig):
    decoder_embed_dim: int = option(768, "width of the decoder")
    decoder_attention_heads: int = option(12, "attention heads of the decoder")
    decoder_ffn_embed_dim: int = option(3072, "inner width of the decoder's feed-forward networks")
    decoder_layers: int = option(12, "layers of the decoder")
    decoder_normalize_before: bool | None = option(
        None, "pre-norm decoder; unset: pre-norm unless deepnorm, which is always post-norm"
    )
    decoder_moe_freq: int | None = option(None, "moe_freq of the decoder; unset: moe_freq")
    decoder_learned_pos: bool = option(False, "learned instead of sinusoidal positions in the decoder")
    share_decoder_input_output_embed: bool = option(
        False, "one matrix for the decoder's embedding and its output projection"
    )
    max_target_positions: int = option(1024, "longest target in tokens")
    blockwise_causal_window: int = option(
        0,
        "in evaluation with xPos, attend within blocks of half this many tokens and to the block before "
        "(blockwise causal attention); the length of training, for longer texts; 0: attend to all",
    )

    def _check(self) -> None:
        super()._check()
        self._check_stack("decoder")
        self._check_placement("decoder")
        if self.blockwise_causal_window < 0 or self.blockwise_causal_window % 2:
            raise ValueError(
                f"blockwise_causal_window ({self.blockwise_causal_window}) must be even, or 0 for full attention."
            )
        if self.blockwise_causal_window and not self.xpos_rel_pos:
            raise ValueError(
                f"blockwise_causal_window ({self.blockwise_causal_window}) is for models with xpos_rel_pos, which "
                "this one lacks; leave it at 0."
            )
        _check_range("max_target_positions", self.max_target_positions, 1)

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


@dataclass(frozen=True, kw_only=True)
class _DilatedOptions(_TransformerConfig):
    """Options of dilated attention, which turns an encoder or decoder into a LongNet."""

    segment_length: str | Sequence[int] | None = option(
        None, "dilated attention (LongNet): tokens per segment, a list with one entry per branch, as '[2048,4096]'"
    )
    dilated_ratio: str | Sequence[int] | None = option(
        None, "keep every r-th token of a segment, a list with one entry per branch, as '[1,2]'"
    )

    def _check(self) -> None:
        super()._check()
        segments, ratios = self.segment_lengths, self.dilation_ratios
        if len(segments) != len(ratios):
            raise ValueError(
                f"segment_length ({list(segments)}) and dilated_ratio ({list(ratios)}) must have one entry per branch "
                "each; give both lists ('[2048,4096]' and '[1,2]', say), or neither."
            )
        if segments and self.has_relative_bias:
            raise ValueError(
                f"rel_pos_buckets ({self.rel_pos_buckets}) is for dense attention and segment_length for dilated "
                "attention, which takes no bias; use xpos_rel_pos."
            )

    @property
    def backend(self) -> str:
        """The attention backend in use."""
        return self.attention_backend or "sdpa" if self.segment_lengths else super().backend

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Tokens per segment, one entry per branch; none for dense attention."""
        return _integers("segment_length", self.segment_length)

    @property
    def dilation_ratios(self) -> tuple[int, ...]:
        """Distance of the tokens that a segment keeps, likewise."""
        return _integers("dilated_ratio", self.dilated_ratio)


def _integers(name: str, value: str | Sequence[int] | None) -> tuple[int, ...]:
    """A list of positive integers, or a string that spells one."""
    if value is None or value == "":
        return ()
    try:
        parsed = ast.literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        parsed = None
    if not (isinstance(parsed, (list, tuple)) and all(type(n) is int and n >= 1 for n in parsed)):
        raise ValueError(f"{name} ({value}) must be a list of whole numbers from 1 on, such as '[2048,4096]'.")
    return tuple(parsed)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(_EncoderSide, _DilatedOptions):
    """Options of ``Encoder`` and ``LongNetEncoder``."""

    share_encoder_input_output_embed: bool = option(
        False, "one matrix for the encoder's embedding and its output projection"
    )


@dataclass(frozen=True, kw_only=True)
class _ImageOptions(_Config):
    """Options of encoders that read images."""

    img_size: int = option(224, "height and width of images in pixels")
    patch_size: int = option(16, "height and width of a patch in pixels")
    in_chans: int = option(3, "channels of an image", core_only=True)

    def _check(self) -> None:
        super()._check()
        for name in ("img_size", "patch_size", "in_chans"):
            _check_range(name, getattr(self, name), 1)
        if self.img_size % self.patch_size:
            raise ValueError(
                f"img_size ({self.img_size}) must be a multiple of patch_size ({self.patch_size}); use "
                f"{self.img_size - self.img_size % self.patch_size or self.patch_size}."
            )

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.img_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class BEiT3Config(EncoderConfig, _ImageOptions):
    """Options of ``BEiT3``."""

    multiway: bool = option(True, "feed-forward networks of their own for images and for texts", core_only=True)
    no_output_layer: bool = option(True, "BEiT3 has no projection to the vocabulary", core_only=True)

    def _check(self) -> None:
        super()._check()
        if not (self.multiway and self.no_output_layer):
            raise ValueError("BEiT3 is multiway, without output layer; drop multiway=False and no_output_layer=False.")
        if self.share_encoder_input_output_embed:
            raise ValueError("share_encoder_input_output_embed has no place in BEiT3, which has no output layer.")


LONGVIT_SEGMENTS = {
    1024: (64, 128, 256, 512, 1024),
    4096: (1024, 2048, 4096, 8192, 16384),
    8192: (1024, 4096, 8192, 16384, 65536),
    16384: (1024, 4096, 16384, 65536, 262144),
    32768: (1024, 4096, 32768, 262144, 1048576),
}
"""Segment lengths in patches for images of so many pixels, as its authors released them."""


@dataclass(frozen=True, kw_only=True)
class LongViTConfig(EncoderConfig, _ImageOptions):
    """Options of ``LongViT``; the defaults are those of the released small model."""

    img_size: int = option(1024, "height and width in pixels of the images that position embeddings are made for")
    patch_size: int = option(32, "height and width of a patch in pixels")
    segment_length: str | Sequence[int] | None = option(
        None, "patches per segment, a list with one entry per branch; unset: the released ones for img_size"
    )
    dilated_ratio: str | Sequence[int] | None = option(
        "[1,2,4,8,16]", "keep every r-th patch of a segment, a list with one entry per branch"
    )
    encoder_embed_dim: int = option(384, "width of the encoder")
    encoder_attention_heads: int = option(16, "attention heads of the encoder")
    encoder_ffn_embed_dim: int = option(1536, "inner width of the encoder's feed-forward networks")
    normalize_output: bool = option(False, "norm after the last layer", core_only=True)
    no_output_layer: bool = option(True, "LongViT has no projection to a vocabulary", core_only=True)

    def _check(self) -> None:
        super()._check()
        if self.vocab_size != -1 or not self.no_output_layer:
            raise ValueError("LongViT reads no words: drop vocab_size and no_output_layer.")

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Patches per segment, one entry per branch: given, or released for the next size from img_size on."""
        if self.segment_length is not None:
            return super().segment_lengths
        sizes = [size for size in LONGVIT_SEGMENTS if size >= self.img_size] or [max(LONGVIT_SEGMENTS)]
        return LONGVIT_SEGMENTS[min(sizes)]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(_DecoderSide, _DilatedOptions):
    """Options of ``Decoder`` and ``LongNetDecoder``."""

    multiway: bool = option(False, "doubled attention parameters of TorchScale's multiway decoders", core_only=True)

    def _check(self) -> None:
        super()._check()
        if self.segment_lengths and self.blockwise_causal_window:
            raise ValueError(
                f"blockwise_causal_window ({self.blockwise_causal_window}) is for dense attention and segment_length "
                "for dilated attention; drop one."
            )
        if self.multiway and not self.torchscale_compatible:
            raise ValueError(
                "multiway has no use in a decoder, where all tokens are of one modality; "
                "to load a TorchScale decoder made with it, add torchscale_compatible=True."
            )


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(_EncoderSide, _DecoderSide):
    """Options of ``EncoderDecoder``."""

    share_all_embeddings: bool = option(
        False, "one matrix for the embeddings of both sides and the output projection (joined dictionary)"
    )

    def _check(self) -> None:
        super()._check()
        if self.share_all_embeddings and self.encoder_embed_dim != self.decoder_embed_dim:
            raise ValueError(
                f"share_all_embeddings needs encoder_embed_dim ({self.encoder_embed_dim}) equal to "
                f"decoder_embed_dim ({self.decoder_embed_dim})."
            )

    @property
    def shares_output_embedding(self) -> bool:
        """Whether the output projection is the decoder's embedding."""
        return self.share_all_embeddings or self.share_decoder_input_output_embed


def _as_in_transformers(name: str, **changes: Any) -> Any:
    """The field of that name that Transformers have, with another default, say."""
    shared = {f.name: f for side in (_TransformerConfig, _DecoderSide) for f in fields(side)}[name]
    known = ("help", "choices", "alias", "core_only")
    return option(**{"default": shared.default, **{key: shared.metadata[key] for key in known}, **changes})


@dataclass(frozen=True, kw_only=True)
class _RetentionSide(_Config):
    """Options of a decoder with retention in the place of self-attention."""

    decoder_embed_dim: int = _as_in_transformers("decoder_embed_dim")
    decoder_value_embed_dim: int = option(1296, "width of the values and the gate of retention")
    decoder_retention_heads: int = option(3, "retention heads of the decoder")
    decoder_ffn_embed_dim: int = _as_in_transformers("decoder_ffn_embed_dim", default=1280)
    decoder_layers: int = _as_in_transformers("decoder_layers")
    decoder_normalize_before: bool | None = _as_in_transformers("decoder_normalize_before")
    chunkwise_recurrent: bool = option(
        False, "the chunkwise form of retention at any length; otherwise where it is faster than the parallel one"
    )
    recurrent_chunk_size: int = option(128, "tokens per chunk of the chunkwise form; changes speed and memory alone")
    retention_decay: str = option(
        "powers",
        "decays of the heads: 1 - 2^(-5 - head), or linspace, 1 - gamma from 1/32 to 1/512 in equal ratios",
        choices=DECAYS,
    )
    retention_backend: str = option(
        "auto",
        "implementation of retention over several tokens: torch, fla (flash-linear-attention's kernel, on a GPU in "
        "fp16 or bf16, without padding), or auto, which is fla where it is installed and serves the batch",
        choices=RETENTION_BACKENDS,
    )
    share_decoder_input_output_embed: bool = _as_in_transformers("share_decoder_input_output_embed")

    def _check(self) -> None:
        super()._check()
        for name in ("embed_dim", "value_embed_dim", "retention_heads", "ffn_embed_dim", "layers"):
            _check_range(f"decoder_{name}", getattr(self, f"decoder_{name}"), 1)
        _check_range("recurrent_chunk_size", self.recurrent_chunk_size, 1)
        heads = self.decoder_retention_heads
        for name in ("decoder_embed_dim", "decoder_value_embed_dim"):
            width = getattr(self, name)
            if width % heads:
                raise ValueError(
                    f"{name} ({width}) must be divisible by decoder_retention_heads ({heads}); "
                    f"use {_nearest_divisor(width, heads)} heads, or {name}={width + heads - width % heads}."
                )
        if self.decoder_embed_dim // heads % 2:
            raise ValueError(
                "retention rotates pairs of channels: decoder_embed_dim / decoder_retention_heads "
                f"({self.decoder_embed_dim} / {heads} = {self.decoder_embed_dim // heads}) must be even."
            )

    def _refuse(self, *names: str, hint: str = "") -> None:
        """Raise ValueError if one of these options is on."""
        for name in names:
            if getattr(self, name):
                raise ValueError(
                    f"{name} has no place in a decoder with retention, which brings positions and norms of its own; "
                    f"drop it. {hint}".rstrip()
                )


@dataclass(frozen=True, kw_only=True)
class RetNetConfig(_RetentionSide, _ExpertOptions, _BitNetOptions):
    """Options of ``RetNetDecoder``. The norms are RMSNorms and the feed-forward networks gated linear units."""

    vocab_size: int = _as_in_transformers("vocab_size")
    no_output_layer: bool = _as_in_transformers("no_output_layer")
    activation_fn: str = _as_in_transformers("activation_fn")
    layernorm_eps: float = _as_in_transformers("layernorm_eps", default=1e-6)
    dropout: float = _as_in_transformers("dropout", help="dropout after embeddings, retention and feed-forward")
    activation_dropout: float = _as_in_transformers("activation_dropout")
    drop_path_rate: float = _as_in_transformers("drop_path_rate")
    no_scale_embedding: bool = _as_in_transformers("no_scale_embedding")
    layernorm_embedding: bool = _as_in_transformers("layernorm_embedding", help="normalise token embeddings")
    deepnorm: bool = option(False, "DeepNorm, which RetNet is not made for; with torchscale_compatible alone")
    subln: bool | None = option(None, "SubLN, which changes nothing in RetNet; with torchscale_compatible alone")
    max_target_positions: int = _as_in_transformers(
        "max_target_positions", help="longest sequence in tokens that fairseq passes on; the model knows no limit"
    )
    checkpoint_activations: bool = _as_in_transformers("checkpoint_activations")
    ffn_chunk_size: int = _as_in_transformers("ffn_chunk_size")
    compile: bool = _as_in_transformers("compile")
    torchscale_compatible: bool = _as_in_transformers("torchscale_compatible")

    def _check(self) -> None:
        super()._check()
        for name in ("dropout", "activation_dropout", "drop_path_rate"):
            _check_range(name, getattr(self, name), 0.0, 1.0)
        _check_range("ffn_chunk_size", self.ffn_chunk_size, 0)
        _check_range("max_target_positions", self.max_target_positions, 1)
        if self.vocab_size < -1 or self.vocab_size == 0:
            raise ValueError(f"vocab_size ({self.vocab_size}) must be positive, or -1 for a model without embeddings.")
        if not self.torchscale_compatible:
            self._refuse(
                "deepnorm", "subln", hint="To load a TorchScale model made with it, add torchscale_compatible=True."
            )

    @property
    def decoder_pre_norm(self) -> bool:
        """Whether the norms stand before the sublayers; TorchScale's deepnorm leaves them there unless told."""
        return self.decoder_normalize_before is not False

    @property
    def shares_output_embedding(self) -> bool:
        """Whether the output projection is the embedding."""
        return self.share_decoder_input_output_embed

    # What the layers that RetNet shares with Transformers ask of a config.
    decoder_attention_heads = property(lambda self: self.decoder_retention_heads)
    decoder_learned_pos = property(lambda self: False)
    has_absolute_positions = property(lambda self: False)
    multiway = property(lambda self: False)
    uses_subln = property(lambda self: False)
    gated_ffn = property(lambda self: True)
    norm = property(lambda self: "rmsnorm")


@dataclass(frozen=True, kw_only=True)
class RetNetEncoderDecoderConfig(EncoderDecoderConfig, _RetentionSide):
    """Options of an ``Encoder`` and a ``RetNetDecoder`` that attends to it."""

    def _check(self) -> None:
        super()._check()
        self._refuse("deepnorm", "subln", "decoder_learned_pos", "blockwise_causal_window")

    @property
    def uses_subln(self) -> bool:
        """Never."""
        return False
