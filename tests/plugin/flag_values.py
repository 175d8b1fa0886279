"""For every flag of a model, a value other than its default, and the flags that it needs next to it."""

from collections.abc import Iterator
from dataclasses import Field
from typing import Any

from tests.plugin.registered import config_class, config_of, parser_of
from torchscale_fairseq.models._options import flag_fields

ARCHITECTURES = ["mt_base", "mt_deepnorm", "lm_base", "gpt_deepnorm", "mlm_base", "bert_deepnorm"]
ARCHITECTURES += ["retnet_base", "mt_retnet"]
WITHOUT_PLACE_IN_RETNET = ("deepnorm", "subln", "decoder_learned_pos", "blockwise_causal_window")
CONTRADICT_DEEPNORM = ("subln", "encoder_normalize_before", "decoder_normalize_before")
COMPANIONS = {
    "bitnet_recipe": ["--bitnet", "b1.58"],
    "bitnet_packed": ["--bitnet", "b1"],
    "rel_pos_buckets": ["--max-rel-pos", "128"],
    "max_rel_pos": ["--rel-pos-buckets", "32"],
    "blockwise_causal_window": ["--xpos-rel-pos"],
    "segment_length": ["--dilated-ratio", "[1]"],
    "dilated_ratio": ["--segment-length", "[64]"],
    "moe_freq": ["--moe-expert-count", "8"],
    "moe_expert_count": ["--moe-freq", "2"],
    "moe_routing_dim": ["--moe-freq", "2", "--moe-expert-count", "8", "--use-xmoe"],
}
EXPERTS = ["--moe-freq", "2", "--moe-expert-count", "8"]
VALUES = {"segment_length": "[96]", "dilated_ratio": "[96]", "conv_kernel_sizes": "3,3"}
BY_ENDING = {"moe_freq": 4, "top_k": 4, "retention_heads": 16, "heads": 64}


def flags() -> Iterator[tuple[str, str]]:
    """Architectures and the names of their options that have a flag."""
    for arch in ARCHITECTURES:
        known = parser_of(arch)._option_string_actions
        yield from ((arch, field.name) for field in flag_fields(config_class(arch)) if flag_of(field.name) in known)
    yield from (("s2t_magneto", name) for name in ("conv_kernel_sizes", "conv_channels"))


def is_refused_by_retnet(arch: str, name: str) -> bool:
    return "retnet" in arch and name in WITHOUT_PLACE_IN_RETNET


def is_refused_by_deepnorm(arch: str, name: str) -> bool:
    return arch.endswith("deepnorm") and name in CONTRADICT_DEEPNORM


def is_fixed(arch: str, name: str) -> bool:
    """TorchScale's router has 16 dimensions."""
    return name == "moe_routing_dim" and config_of(arch).torchscale_compatible


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def words_and_value(arch: str, name: str) -> tuple[list[str], Any]:
    """Words of a command line that change an option, and its value then."""
    field = next(field for field in flag_fields(config_class(arch)) if field.name == name)
    value = _other_value(field, getattr(config_of(arch), name))
    words = [flag_of(name)] if value is True else [flag_of(name), str(value)]
    return words + COMPANIONS.get(name, EXPERTS if "moe" in name else []), value


def _other_value(field: Field, default: Any) -> Any:
    if "bool" in str(field.type) or isinstance(field.default, bool):
        return True
    if field.metadata["choices"]:
        return next(choice for choice in field.metadata["choices"] if choice != default)
    if field.name in VALUES:
        return VALUES[field.name]
    if "float" in str(field.type):
        return 0.25
    return next((value for ending, value in BY_ENDING.items() if field.name.endswith(ending)), 96)
