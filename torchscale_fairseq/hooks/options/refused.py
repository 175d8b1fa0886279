"""Options that cannot work together or in a command are refused before data is read, where stock fails later."""

import ast
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim import OPTIMIZER_REGISTRY
from omegaconf import DictConfig

from torchscale_fairseq.core.errors import InputError, did_you_mean
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.backends import check_backends
from torchscale_fairseq.hooks.options.checkpoint_paths import check_paths
from torchscale_fairseq.hooks.options.effects import check_effects
from torchscale_fairseq.hooks.options.self_distillation import check_self_distillation
from torchscale_fairseq.hooks.options.surfaces import flag_of, spelt_as_typed

ALONE = "@@ "
"""The value that fairseq gives to ``--replace-unk`` without a file, and then opens as a file."""
JOINED = (None, "@@ ", "subword_nmt")
"""Values of ``--remove-bpe`` that ``fairseq-eval-lm`` knows."""
LOGGING = "job_logging_cfg"
"""The section in which ``fairseq-hydra-train`` hands Hydra's logging to its processes."""

LEAST = {
    ("optimization", "update_freq"): 1,
    ("dataset", "batch_size"): 1,
    ("dataset", "max_tokens"): 1,
    ("dataset", "num_workers"): 0,
    ("dataset", "validate_interval"): 1,
    ("checkpoint", "save_interval"): 1,
    ("common", "log_interval"): 1,
    ("task", "tokens_per_sample"): 1,
    ("task", "max_source_positions"): 1,
    ("task", "max_target_positions"): 1,
}
"""The least value of each option; stock fairseq fails below it, or divides by zero."""


def check_before_training(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.dataclass.initialize.add_defaults``, with which training begins."""

    def add_defaults(cfg: Any) -> None:
        stock(cfg)
        check_training(cfg)

    return add_defaults


def check_training(cfg: Any) -> None:
    """Refuse options of training that are missing or that nothing can be done with.

    Args:
        cfg: fairseq's configuration.

    Raises:
        InputError: with the option, its value and the condition.
    """
    _check_keys(cfg)
    if cfg.get("optimizer") is None or getattr(cfg.optimizer, "_name", None) is None:
        names = ", ".join(sorted(OPTIMIZER_REGISTRY))
        raise InputError(f"the optimizer is missing: give --optimizer (in Hydra, optimizer._name), one of {names}")
    with spelt_as_typed():
        for (group, name), least in LEAST.items():
            _check_least(f"{group}.{name}", getattr(cfg.get(group), name, None), least)
        check_self_distillation(cfg)
    check_effects(cfg.model)
    check_backends(cfg)
    for name in ("eval_bleu_args", "eval_bleu_detok_args"):
        _check_json(flag_of(name), getattr(cfg.task, name, None))


def _check_least(option: str, given: Any, least: int) -> None:
    is_list = isinstance(given, Sequence)
    for value in given if is_list else [given]:
        if isinstance(value, int) and value < least:
            remedy = {option: [least] if is_list else least}
            raise OptionError(option, value, f"{{{option}()}} must be at least {least}", [remedy])


def _check_keys(cfg: Any) -> None:
    """Refuse keys and sections that Hydra added with ``+`` and that nothing reads."""
    sections = {field.name for field in dataclasses.fields(FairseqConfig)}
    for name in sorted(set(cfg) - sections - {LOGGING}):
        if isinstance(cfg[name], Mapping | DictConfig):
            raise InputError(f"there is no section {name}{did_you_mean(name, sections) or _listed(sections)}")
    for group in dataclasses.fields(FairseqConfig):
        if not dataclasses.is_dataclass(group.type) or cfg.get(group.name) is None:
            continue
        known = {field.name for field in dataclasses.fields(group.type)}
        for key in cfg[group.name]:
            if key not in known:
                raise InputError(f"there is no key {group.name}.{key}{did_you_mean(key, known)}")


def _listed(sections: set[str]) -> str:
    return f"; choose from {', '.join(sorted(sections - {'_name'}))}"


def _check_json(flag: str, text: str | None) -> None:
    try:
        json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"{flag} ({text}) is not JSON: {error}; write it like '{{\"beam\": 4}}'") from None


def check_evaluation(cfg: Any, command: str) -> None:
    """Refuse options of a command that evaluates or generates, and correct ``--replace-unk`` without a file.

    Args:
        cfg: the command's configuration; changed in place.
        command: "generate", "interactive", "validate" or "eval_lm".

    Raises:
        InputError: an option has no place in this command, or names a file that is not there or not as it must be.
    """
    _check_overrides(cfg.common_eval.model_overrides)
    if command == "generate" and cfg.generation.constraints is not None:
        raise InputError(
            "--constraints has nothing to read in fairseq-generate: give it to fairseq-interactive, and each "
            "constraint after a tab in the line of its sentence"
        )
    if command in ("generate", "interactive") and cfg.generation.replace_unk is not None:
        _check_replacements(cfg)
    if command == "eval_lm":
        _check_eval_lm(cfg.common_eval)
    check_paths(cfg, command)


def _check_overrides(text: str) -> None:
    try:
        overrides = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        overrides = None
    if not isinstance(overrides, dict):
        raise InputError(
            f"--model-overrides ({text}) is not a dictionary in Python's notation, like \"{{'dropout': 0}}\""
        )


def _check_replacements(cfg: Any) -> None:
    if cfg.generation.print_alignment != "hard":
        raise InputError(
            "--replace-unk needs --print-alignment, which finds the source word of each unknown word, and a model that "
            "keeps attention weights, such as --arch transformer"
        )
    if cfg.generation.replace_unk == ALONE:
        cfg.generation.replace_unk = ""
    if cfg.generation.replace_unk:
        path = Path(cfg.generation.replace_unk)
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if len(line.split()) < 2:
                raise InputError(f"--replace-unk {path}, line {number} must hold a source word and its translation")


def _check_eval_lm(options: Any) -> None:
    paths = (options.path or "").split(os.pathsep)
    if len(paths) > 1 and not Path(options.path).exists():
        raise InputError(f"--path names {len(paths)} checkpoints, and fairseq-eval-lm evaluates one: give one of them")
    if options.post_process not in JOINED:
        raise InputError(
            f"--remove-bpe {options.post_process} is unknown to fairseq-eval-lm, which joins pieces of subword_nmt "
            "alone: leave it out; torchscale-fairseq perplexity gives figures that do not depend on the pieces"
        )
