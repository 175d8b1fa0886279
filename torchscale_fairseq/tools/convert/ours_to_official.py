"""From our checkpoint to TorchScale's."""

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchscale_fairseq.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, RetNetConfig
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.convert import official_format as official
from torchscale_fairseq.tools.convert.checkpoint_files import (
    RECORD,
    Conversion,
    build,
    core_config,
    is_ours,
    model_options,
    parameter_order,
)
from torchscale_fairseq.tools.convert.official_to_ours import REPLACED, to_ours

ARCHITECTURES = {
    DecoderConfig: "lm_base",
    EncoderDecoderConfig: "mt_base",
    EncoderConfig: "mlm_base",
    RetNetConfig: "retnet_base",
}

WITHOUT_EFFECT = ("attention_backend", "bert_init", "compile", "drop_path_rate", "flash_attention", "retention_backend")
"""Options of ours that change no output of a trained model."""


def to_official(state: Mapping[str, Any], path: Path) -> Conversion:
    """Convert a checkpoint.

    Args:
        state: its content.
        path: its file, to be named in errors.

    Raises:
        InputError: it is not one of ours, or of a model that TorchScale lacks.
    """
    options = model_options(state, path)
    if not is_ours(options):
        raise InputError(f"{path} is not a checkpoint of torchscale_fairseq, but of --arch {options['_name']}")
    model = build(options, state["model"], path)
    order = parameter_order(model, state["model"])
    restored = _restored(state, path)
    return Conversion(
        restored or _converted(state, options, core_config(model), path),
        ["as before it was converted" if restored else "options that TorchScale ignores are left to its defaults"],
        order_before=order,
        order_after=official.parameter_order(order),
    )


def _restored(state: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The official version that the checkpoint was converted from, unless its options were changed since."""
    record = state.get(RECORD)
    if record is None:
        return None
    tensors = {**state["model"], **record["constants"]}
    rest = {key: value for key, value in state.items() if key not in (*REPLACED, RECORD)}
    original = {**rest, **record["entries"], "model": OrderedDict((name, tensors[name]) for name in record["names"])}
    again = to_ours(original, path).state
    return original if all(again[key] == state[key] for key in ("args", "cfg")) else None


def _converted(state: Mapping[str, Any], options: Mapping[str, Any], config: Any, path: Path) -> dict[str, Any]:
    if type(config) not in ARCHITECTURES:
        raise InputError(f"{path} is of --arch {options['_name']}, and TorchScale has no such model")
    arch = ARCHITECTURES[type(config)]
    theirs, name = _official_options(options, config, arch, path), official.NAMES_ON_LOADING[arch]
    configuration: dict[str, Any] = {"args": None, "cfg": None}
    if state.get("args") is not None:
        ours_alone = {"torchscale_compatible", *WITHOUT_EFFECT}
        kept = {key: value for key, value in vars(state["args"]).items() if key not in ours_alone}
        configuration["args"] = Namespace(**{**kept, **theirs, "arch": name})
    else:
        theirs["_name"] = name
        model = Namespace(**theirs, arch=name) if arch == "mt_base" else theirs
        configuration["cfg"] = {**state["cfg"], "model": model}
    rest = {key: value for key, value in state.items() if key != RECORD}
    return {**rest, **configuration, "model": OrderedDict({**state["model"], **_constants(config, arch)})}


def _official_options(options: Mapping[str, Any], config: Any, arch: str, path: Path) -> dict[str, Any]:
    _refuse_ours_alone(options, config, arch, path)
    theirs = {name: getattr(config, name, options.get(name)) for name in official.LIVE[arch]}
    theirs |= {f"{side}_normalize_before": getattr(config, f"{side}_pre_norm") for side in official.SIDES[arch]}
    theirs["subln"] = not isinstance(config, RetNetConfig) and config.uses_subln
    if arch != "retnet_base":
        theirs["no_token_positional_embeddings"] = not config.has_absolute_positions
    longnet = {name: str(theirs.pop(name)) for name in ("segment_length", "dilated_ratio") if theirs.get(name)}
    if longnet:
        theirs |= {**longnet, "flash_attention": True}  # without which it cannot run there
    if not theirs.get("flash_attention"):
        theirs.pop("flash_attention", None)  # unknown to 0.3.0
    return theirs


def _refuse_ours_alone(options: Mapping[str, Any], config: Any, arch: str, path: Path) -> None:
    if not config.torchscale_compatible:
        raise InputError(
            f"{path} was trained without --torchscale-compatible (--arch {options['_name']}), and TorchScale's models "
            "do not compute the same"
        )
    known = {*official.LIVE[arch], *WITHOUT_EFFECT, "torchscale_compatible"}
    for field in config.__dataclass_fields__.values():
        value = getattr(config, field.name)
        if not (field.name in known or field.metadata["core_only"] or value == field.default):
            raise InputError(f"{path} has {field.name}={value!r}, an option that TorchScale's {arch} lacks")
    if arch == "mlm_base" and not config.share_encoder_input_output_embed:
        raise InputError(
            f"{path} has share_encoder_input_output_embed=False; TorchScale's mlm_base always shares the embedding"
        )


def _constants(config: Any, arch: str) -> dict[str, Tensor]:
    """Entries of official state dicts that are not parameters."""
    if isinstance(config, RetNetConfig):
        return _constants_of_retnet(config)
    constants = {}
    for side in official.SIDES[arch]:
        if config.has_absolute_positions and not getattr(config, f"{side}_learned_pos"):
            constants[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
        if config.xpos_rel_pos:
            head_dim = getattr(config, f"{side}_embed_dim") // getattr(config, f"{side}_attention_heads")
            scale = (torch.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim)
            for layer in range(getattr(config, f"{side}_layers")):
                constants[f"{side}.layers.{layer}.self_attn.xpos.scale"] = scale
    return constants


def _constants_of_retnet(config: RetNetConfig) -> dict[str, Tensor]:
    heads = config.decoder_retention_heads
    wave_lengths = 10000 ** torch.linspace(0, 1, config.decoder_embed_dim // heads // 2)
    gammas = 1 - 0.5 ** (5 + torch.arange(heads, dtype=torch.float32))
    return {
        "decoder.retnet_rel_pos.angle": (1 / wave_lengths).repeat_interleave(2),
        "decoder.retnet_rel_pos.decay": gammas.log(),
    }
