"""A checkpoint of a tiny model of each family, as fairseq-train writes it, without training."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import models
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import nn

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.plugin.shrunk import shrunk

OF_THE_TASK = {"tokens_per_sample": 32, "max_source_positions": 32, "max_target_positions": 32}
OF_THE_TASK |= {"img_size": 16, "patch_size": 8}


@dataclass(frozen=True)
class Family:
    """An architecture, options beside its sizes, and what its task remembers."""

    arch: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    task_state: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "gpt": Family("gpt_deepnorm_small", "language_modeling"),
    "longnet": Family("longnet_small", "language_modeling", {"segment_length": "[4,8]", "dilated_ratio": "[1,2]"}),
    "compatible": Family("lm_base", "language_modeling"),
    "retnet": Family("retnet_small", "language_modeling"),
    "bitnet": Family("bitnet_small", "language_modeling"),
    "bert": Family("bert_magneto_small", "masked_lm"),
    "mt": Family("mt_magneto_small", "translation"),
    "mt_retnet": Family("mt_retnet_small", "translation"),
    "experts": Family("mt_xmoe_small", "translation"),
    "beit3": Family("beit3_small", "image_text"),
    "longvit": Family("longvit_tiny", "image_classification", task_state={"classes": ["blue", "green", "red"]}),
    "masked_images": Family("beit_tiny", "masked_image_modeling"),
    "survival": Family("longvit_tiny", "image_classification", task_state={"time edges": [0.0, 1.5, 4.0]}),
}


def build(family: Family) -> tuple[dict[str, Any], nn.Module]:
    """The model with random parameters, and its part of fairseq's configuration."""
    dictionary = Dictionary()
    for index in range(20):
        dictionary.add_symbol(f"w{index}")
    flags = shrunk(family.arch)[2:]
    sizes = {flag[2:].replace("-", "_"): int(value) for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    options = {f.name: f.default for f in dataclasses.fields(models.MODEL_DATACLASS_REGISTRY[family.arch])}
    known = {name: value for name, value in OF_THE_TASK.items() if name in options}
    options = {**options, **known, **sizes, **family.options, "_name": family.arch}
    classes = next((len(value) for value in family.task_state.values()), 0)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, num_classes=classes)
    if family.task == "masked_image_modeling":
        task.patch_vocab_size = 5
    torch.manual_seed(1)
    return options, models.build_model(OmegaConf.create(options), task).eval()


def write_checkpoint(family: Family, path: Path) -> Any:
    """Write the checkpoint; returns the model that is in it."""
    options, model = build(family)
    state = {
        "args": None,
        "cfg": {"model": options, "task": {"_name": family.task}},
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [],
        "task_state": family.task_state,
        "extra_state": {},
    }
    torch.save(state, path)
    return model
