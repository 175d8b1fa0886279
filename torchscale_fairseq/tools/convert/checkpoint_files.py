"""Checkpoints of our models, read, checked and written for the converters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from torchscale_fairseq import plugin
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.convert import official_format as official

RECORD = "torchscale_official"
"""Entry of a checkpoint converted from TorchScale's: what that one holds and ours has no use for."""


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint, except for its optimizer's state.

    Args:
        state: its content.
        notes: what the user should know.
        order_before, order_after: names of the parameters, in the order in which the optimizers count them in the
            checkpoint that was read and in this one.
    """

    state: dict[str, Any]
    notes: list[str]
    order_before: list[str]
    order_after: list[str]


@dataclass(frozen=True)
class Vocabulary:
    """The interface of a dictionary that models use."""

    size: int

    def __len__(self) -> int:
        return self.size

    def pad(self) -> int:
        """Index of padding, the same in all dictionaries of fairseq."""
        return 1


def model_options(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of a checkpoint's model, among others if it is of the argparse kind.

    Raises:
        InputError: the checkpoint records none.
    """
    namespace = state.get("args")
    found = namespace if namespace is not None else (state.get("cfg") or {}).get("model")
    if found is None:
        raise InputError(f"{path} does not say how its model was built: it has neither args nor cfg.model")
    options = dict(found) if isinstance(found, Mapping) else dict(vars(found))
    return {**options, "_name": options.get("_name") or options.get("arch")}


def is_ours(options: Mapping[str, Any]) -> bool:
    """Whether these are options of one of our models."""
    return "torchscale_compatible" in options


def build(options: Mapping[str, Any], parameters: Mapping[str, Tensor], path: Path) -> nn.Module:
    """One of our models without values, made to fit the parameters.

    Args:
        options: its part of fairseq's configuration, among others or not.
        parameters: its state dict, also with classification heads, which are left out.
        path: the checkpoint, to be named in errors.

    Raises:
        InputError: the options contradict each other, or the parameters are not those of this model.
    """
    from fairseq.models import MODEL_DATACLASS_REGISTRY, build_model  # which takes seconds that --help is spared

    plugin.register()
    name = options["_name"]
    if name not in MODEL_DATACLASS_REGISTRY:
        raise InputError(f"{path} was made with --arch {name}, which this version does not have")
    if options.get("lora_rank"):
        raise InputError(
            f"{path} has adapters; merge them first: torchscale-fairseq convert merge-lora {path} merged.pt"
        )
    known = MODEL_DATACLASS_REGISTRY[name].__dataclass_fields__
    cfg = OmegaConf.create({key: value for key, value in options.items() if key in known})
    try:
        with torch.device("meta"):
            model = build_model(cfg, _task(parameters))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    _check_parameters(parameters, model.state_dict(), name, path)
    return model


def parameter_order(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters in the order in which our optimizers count them.

    Args:
        model: made by ``build``.
        parameters: its state dict, also with classification heads.
    """
    heads = [name for name in parameters if official.HEAD_PARAMETER.fullmatch(name)]
    return [name for name, _ in model.named_parameters()] + heads


PATCH_BIAS = "patch_head.bias"
"""The bias of a head that predicts hidden patches: its entries are ids, or a patch's pixels."""
CORE_PARTS = ("decoder", "encoder", "core", "model")
"""Attributes of fairseq's models that hold parts of the core."""


def core_parts(model: nn.Module) -> dict[str, Any]:
    """The parts of a model of fairseq that are the core's, by attribute."""
    children = dict(model.named_children())
    return {name: children[name] for name in CORE_PARTS if name in children}


def core_config(model: nn.Module) -> Any:
    """The core's config that a model of fairseq was built from."""
    return next(iter(core_parts(model).values())).config


def _task(parameters: Mapping[str, Tensor]) -> SimpleNamespace:
    """A task with dictionaries as long as the embeddings, and as many classes or ids as the head has scores."""
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "core.text_embed.weight")
    found = [Vocabulary(len(parameters[name])) for name in names if name in parameters] or [Vocabulary(0)]
    classes = len(parameters["head.bias"]) if "head.bias" in parameters else 0
    ids = {"patch_vocab_size": len(parameters[PATCH_BIAS])} if PATCH_BIAS in parameters else {}
    return SimpleNamespace(source_dictionary=found[0], target_dictionary=found[-1], num_classes=classes, **ids)


def _check_parameters(there: Mapping[str, Tensor], here: Mapping[str, Tensor], name: str, path: Path) -> None:
    def refuse(what: str) -> None:
        raise InputError(f"{path} {what}; it is not what --arch {name} makes under its options")

    for key, value in there.items():
        if key not in here and not official.HEAD_PARAMETER.fullmatch(key):
            refuse(f"has a parameter {key}, which the model lacks")
        if key in here and value.shape != here[key].shape:
            refuse(f"has a parameter {key} of shape {tuple(value.shape)} for {tuple(here[key].shape)}")
    for key in here:
        if key not in there:
            refuse(f"lacks the parameter {key}")
