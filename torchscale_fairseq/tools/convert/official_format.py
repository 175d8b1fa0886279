"""TorchScale's example models for fairseq, as their checkpoints show them: options, constants, norms, order.

Names and defaults are those of TorchScale 0.3.0 and of its git main. Both compute the same from the same parameters
and the same placement of norms; they differ in how they read the placement off the options, and the names of the
parameters tell it whatever the options say: a pre-norm side has a norm after its last layer, a post-norm side none.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_RETNET_SIZES = _words("base medium xl 3b 7b 13b 65b")
ARCHITECTURES = {
    "lm": "lm_base",
    "lm_base": "lm_base",
    "mt": "mt_base",
    "mt_base": "mt_base",
    "mlm": "mlm_base",
    "mlm_base": "mlm_base",
    **dict.fromkeys(("retnet", *(f"retnet_{size}" for size in _RETNET_SIZES)), "retnet_base"),
}
"""Official model and architecture names, and ours."""

NAMES_ON_LOADING = {"lm_base": "lm", "mt_base": "mt_base", "mlm_base": "mlm", "retnet_base": "retnet"}
"""Our names, and the official ones under which all options are taken as they are; ``lm_base`` forces pre-norm."""

SIDES = {
    "lm_base": _words("decoder"),
    "mt_base": _words("encoder decoder"),
    "mlm_base": _words("encoder"),
    "retnet_base": _words("decoder"),
}

VERSIONS = ("0.3.0", "main")

TASKS = {"pretraining": "masked_lm"}
CRITERIA = {"moe_cross_entropy": "cross_entropy", "masked_lm_moe_cross_entropy": "masked_lm"}
CRITERION_CLASSES = {
    "MoECrossEntropyCriterion": "CrossEntropyCriterion",
    "MaskedLMMoECrossEntropyCriterion": "MaskedLmLoss",
}
"""Names that stock fairseq lacks, and those of what computes the same for a model without experts."""

_COMMON = _words(
    "activation_fn dropout attention_dropout activation_dropout layernorm_embedding no_scale_embedding "
    "no_token_positional_embeddings checkpoint_activations deepnorm subln rel_pos_buckets max_rel_pos"
)
_DECODER_ATTENTION = _words("xpos_rel_pos xpos_scale_base flash_attention")


def _of(*sides: str) -> tuple[str, ...]:
    names = ("embed_dim", "ffn_embed_dim", "layers", "attention_heads", "normalize_before", "learned_pos")
    return tuple(f"{side}_{name}" for side in sides for name in names)


LIVE = {
    "lm_base": (
        *_COMMON,
        *_DECODER_ATTENTION,
        *_of("decoder"),
        *_words("share_decoder_input_output_embed max_target_positions tokens_per_sample"),
        *_words("segment_length dilated_ratio"),
    ),
    "mt_base": (
        *_COMMON,
        *_DECODER_ATTENTION,
        *_of("encoder", "decoder"),
        *_words("share_all_embeddings share_decoder_input_output_embed max_source_positions max_target_positions"),
    ),
    "mlm_base": (
        *_COMMON,
        *_of("encoder"),
        *_words("share_encoder_input_output_embed max_source_positions pooler_activation_fn pooler_dropout"),
    ),
    "retnet_base": _words(
        "activation_fn dropout activation_dropout layernorm_embedding no_scale_embedding checkpoint_activations "
        "deepnorm subln decoder_embed_dim decoder_value_embed_dim decoder_ffn_embed_dim decoder_layers "
        "decoder_retention_heads decoder_normalize_before chunkwise_recurrent recurrent_chunk_size "
        "share_decoder_input_output_embed "
        "max_target_positions tokens_per_sample"
    ),
}
"""Options that the models read, spelt like ours, for each of our architectures."""

DEAD = _words(
    "relu_dropout offload_activations min_params_to_wrap use_xmoe record_a2a_perf_stats dummy_a2a use_moe_pad_mask "
    "freeze_moe is_moe selected_expert_count pretrained_dense_mt_model_path alternate_ffn_embed_dim "
    "encoder_moe_freq decoder_moe_freq ddp_rank seq_parallel encoder_output_dim encoder_input_dim decoder_output_dim "
    "decoder_input_dim no_encoder_final_norm no_decoder_final_norm encoder_layerdrop decoder_layerdrop "
    "encoder_layers_to_keep decoder_layers_to_keep encoder_embed_path decoder_embed_path no_cross_attention "
    "cross_self_attention quant_noise_pq quant_noise_pq_block_size quant_noise_scalar adaptive_softmax_dropout "
    "adaptive_softmax_factor adaptive_input_factor adaptive_input_cutoff tie_adaptive_weights tie_adaptive_proj "
    "base_layers base_sublayers base_shuffle"
)
"""Options that change nothing in a trained model without experts; so do those that begin with moe_."""

DEAD_IN = {"retnet_base": _words("attention_dropout decoder_learned_pos no_token_positional_embeddings")}
"""Options without effect in single architectures."""

COPIED = _words(
    "add_bos_token tpu memory_efficient_fp16 fp16 fp16_no_flatten_grads ddp_backend world_size distributed_rank"
)
"""Options of other parts of the configuration, which the model's part repeats."""

UNSUPPORTED = {
    "moe_freq": "mixture-of-experts layers",
    "segment_length": "LongNet's dilated attention",
    "dilated_ratio": "LongNet's dilated attention",
    "adaptive_softmax_cutoff": "an adaptive softmax",
    "adaptive_input": "adaptive input embeddings",
    "character_embeddings": "character embeddings",
}
"""Options that, when they are set, make a model that this package lacks, but for those of its models that read them."""

_CONSTANT = re.compile(
    r"(?:encoder|decoder)\.(?:version|embed_positions\.(?:_float_tensor|weights)|"
    r".*\.xpos\.scale|retnet_rel_pos\.(?:angle|decay))"
)
HEAD_PARAMETER = re.compile(r"classification_heads\.[^.]+\.(?:dense|out_proj)\.(?:weight|bias)")

_CHILDREN = _words(
    "encoder decoder embed_tokens embed_positions output_projection layernorm_embedding layers "
    "retention retention_layer_norm self_attn self_attn_layer_norm encoder_attn encoder_attn_layer_norm ffn "
    "final_layer_norm weight bias dense k_proj v_proj q_proj out_proj inner_attn_ln fc1 fc2 gate ffn_layernorm "
    "layer_norm relative_position self_attn_relative_position cross_attn_relative_position relative_attention_bias"
)
_CHILDREN_OF_RETENTION = _words("q_proj k_proj v_proj g_proj out_proj")


def is_dead(option: str) -> bool:
    """Whether an option changes nothing in a model that is not refused."""
    return option in (*DEAD, *UNSUPPORTED) or option.startswith("moe_")


def is_known(option: str, arch: str) -> bool:
    """Whether the official model that is our ``arch`` has such an option."""
    return option in (*LIVE[arch], *DEAD_IN.get(arch, ()), *COPIED, "_name", "arch") or is_dead(option)


def is_constant(name: str) -> bool:
    """Whether an entry of a state dict is computed from the options."""
    return _CONSTANT.fullmatch(name) is not None


def has_inner_norms(names: Iterable[str]) -> bool:
    """Whether the parameters are those of SubLN."""
    return any(".inner_attn_ln." in name for name in names)


def is_pre_norm(side: str, names: Iterable[str]) -> bool:
    """Whether the parameters are those of a pre-norm encoder or decoder."""
    return f"{side}.layer_norm.weight" in names


def makers(options: Mapping[str, Any], sides: Sequence[str], names: Iterable[str]) -> list[str]:
    """The versions that make parameters of these names under these options.

    main moves an encoder's norms to where deepnorm or subln want them and leaves a decoder's where
    decoder_normalize_before says. 0.3.0 leaves both where the options say in its fairseq examples, and moves both if
    the config is made in Python.
    """
    return [version for version in VERSIONS if all(_makes(version, options, side, names) for side in sides)]


def _makes(version: str, options: Mapping[str, Any], side: str, names: Iterable[str]) -> bool:
    if version == "0.3.0" and options.get("segment_length"):
        return False  # LongNet came later
    asked = bool(options.get(f"{side}_normalize_before"))
    wanted = False if options.get("deepnorm") else True if has_inner_norms(names) else asked
    if version == "0.3.0":
        return is_pre_norm(side, names) in (asked, wanted)
    return is_pre_norm(side, names) == (wanted if side == "encoder" else asked)


def parameter_order(names: Iterable[str]) -> list[str]:
    """The names in the order in which the official modules register them, which optimizers count by.

    Classification heads come last, in the order given.
    """
    return sorted(names, key=_rank)


def _rank(name: str) -> list[int]:
    if HEAD_PARAMETER.fullmatch(name):
        return [len(_CHILDREN)]
    own, _, of_retention = name.partition(".retention.")
    rank = [int(part) if part.isdigit() else _CHILDREN.index(part) for part in own.split(".")]
    if of_retention:
        rank += [_CHILDREN.index("retention"), _CHILDREN_OF_RETENTION.index(of_retention.partition(".")[0])]
    return rank
