"""Checkpoints as TorchScale's fairseq examples write them, made of golden vectors."""

import copy
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from tests.helpers import parity_dir
from tests.parity.vectors import Case

KINDS = {
    "fs_lm": "lm",
    "fs_lm_sinus": "lm",
    "fs_longlm": "lm",
    "fs_mlm": "mlm",
    "fs_mt": "mt",
    "fs_retnet": "retnet",
}

DEAD = {
    "moe_freq": 0,
    "moe_expert_count": 0,
    "moe_gating_use_fp32": False,
    "moe_second_expert_policy": "sampling",
    "moe_eval_capacity_token_fraction": 0.25,
    "use_xmoe": False,
    "offload_activations": False,
    "min_params_to_wrap": 100000000,
    "ddp_rank": 0,
}
TASKS: dict[str, dict[str, Any]] = {
    "lm": {"_name": "language_modeling", "tokens_per_sample": 20, "max_target_positions": 30},
    "retnet": {"_name": "language_modeling", "tokens_per_sample": 20, "max_target_positions": 64},
    "mlm": {"_name": "pretraining", "tokens_per_sample": 20, "span_length": 3.0, "spm_model": "sp.model", "seed": 1},
    "mt": {"_name": "translation", "source_lang": "en", "target_lang": "de", "left_pad_source": True},
}


def case_of(name: str) -> Case:
    return Case(parity_dir() / f"{name}.safetensors")


def write_dictionaries(folder: Path, case: Case) -> None:
    """Those of the vectors' models, of 32 entries for each task."""
    words = "".join(f"w{index} 1\n" for index in range(case.meta["build"]["embed_tokens"][0] - 4))
    for name in ("dict.en.txt", "dict.de.txt", "dict.txt"):
        (folder / name).write_text(words)
    if KINDS[case.name] == "mlm":
        (folder / "dict.txt").write_text(words.removesuffix("w27 1\n"))  # the task adds <mask>


def official_checkpoint(case: Case, folder: Path, *, layout: str = "cfg", **options: Any) -> dict[str, Any]:
    """What the private fairseq wrote.

    Args:
        case: one of KINDS.
        folder: with dictionaries.
        layout: "cfg", or "args" for one flat namespace.
        options: of the model, instead of the case's.
    """
    kind = KINDS[case.name]
    model = {**DEAD, **case.meta["config_kwargs"], **options}
    task = {**TASKS[kind], "data": str(folder)}
    flat = {**model, "arch": f"{kind}_base", "task": task["_name"], "criterion": "cross_entropy", "optimizer": "adam"}
    flat |= {"lr_scheduler": "fixed", "lr": [0.25], "log_nvidia_smi": False}
    flat |= {key: value for key, value in task.items() if key not in ("_name", *model)}
    state: dict[str, Any] = {
        "args": None,
        "cfg": {
            "_name": None,
            "common": {"_name": None, "seed": 1, "fp16": False, "log_nvidia_smi": False},
            "common_eval": {"_name": None, "path": None, "is_moe": False},
            "dataset": {"_name": None, "num_workers": 1, "num_workers_valid": 0},
            "checkpoint": {"_name": None, "save_dir": "checkpoints", "no_best_checkpoints": False},
            "model": Namespace(**flat, _name="mt_base") if kind == "mt" else {**model, "_name": f"{kind}_base"},
            "task": task,
            "criterion": {"_name": "moe_cross_entropy", "moe_gate_loss_wt": 1.0, "sentence_avg": False},
            "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.98)", "block_wise": False, "lr": [0.25]},
            "lr_scheduler": {"_name": "fixed", "lr_shrink": 0.1},
        },
        "model": _parameters(case),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "MoECrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 7,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 2, "iterations_in_epoch": 3}, "val_loss": 1.5},
        "last_optimizer_state": None,
    }
    if layout == "args":
        del state["cfg"]
        state["args"] = Namespace(**flat)
    state["last_optimizer_state"] = optimizer_state(state["model"], list(case.meta["extra"]["grad_norms"]))
    return state


def _parameters(case: Case) -> OrderedDict[str, torch.Tensor]:
    """In the official order, tied parameters shared, and with the constants of sinusoidal positions."""
    tensors = case.group("param/")
    names = list(case.meta["extra"]["grad_norms"])
    result = OrderedDict((name, tensors[name].clone()) for name in names)
    if case.name == "fs_lm_sinus":
        result["decoder.version"] = torch.tensor([3.0])
        result["decoder.embed_positions._float_tensor"] = torch.tensor([1.5e-38])
    result |= case.group("buffer/") if case.name == "fs_retnet" else {}
    for name, owner in case.meta["extra"].get("tied", {}).items():
        result[name] = result[owner]
    return result


def optimizer_state(parameters: dict[str, torch.Tensor], names: list[str]) -> dict[str, Any]:
    """Adam's, after a step in which each parameter's own values were its gradient."""
    copies = [copy.deepcopy(parameters[name]).requires_grad_() for name in names]
    adam = torch.optim.Adam(copies)
    for parameter in copies:
        parameter.grad = parameter.detach().clone()
    adam.step()
    return adam.state_dict()
