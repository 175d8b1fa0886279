"""Refuses an architecture with a task or a criterion that cannot train it, before any data is read.

Tasks and criterions of other packages are taken as they are: only those of fairseq and of this package are known.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from torchscale_fairseq.core.errors import InputError, joined
from torchscale_fairseq.hooks.contracts import NamesFittingTasks

_KNOWN = ("fairseq.", "torchscale_fairseq.")


def refuse_unfit(arch: str | None, task: str | None, criterion: str | None = None, typed: Sequence[str] = ()) -> None:
    """Check a choice of names; those that are None or belong to other packages fit.

    Args:
        arch, task, criterion: names in fairseq's registries.
        typed: the words of the command line, if there is one: they tell a default from a choice.

    Raises:
        InputError: the architecture cannot be trained with the task, or not with the criterion.
    """
    model = MODEL_REGISTRY.get(arch)
    if task is None or not isinstance(model, NamesFittingTasks) or not _is_known(TASK_REGISTRY, task):
        return
    fits = model.fits
    if task not in fits:
        others = _architectures_for(task)
        raise InputError(
            f"--arch {arch} does not fit {_named('--task', task, typed)}; give --task {_listed(fits)}"
            f"{f', or --arch {_listed(others)}' if others else ''}. {getattr(model, 'instead', '')}".rstrip()
        )
    if _is_known(CRITERION_REGISTRY, criterion) and criterion not in fits[task]:
        raise InputError(
            f"--arch {arch} does not fit {_named('--criterion', criterion, typed)} with --task {task}; give "
            f"--criterion {_listed(fits[task])}."
        )


def check_command_line(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.options.parse_args_and_arch``: the check comes before options of the wrong task are called unknown.
    --help lists the options of an architecture without a task that fits."""

    def parse_args_and_arch(parser: argparse.ArgumentParser, input_args: Any = None, *rest: Any, **more: Any) -> Any:
        words = sys.argv[1:] if input_args is None else input_args
        if not {"-h", "--help"} & set(words):
            refuse_unfit(**_chosen(parser, words), typed=words)
        return stock(parser, input_args, *rest, **more)

    return parse_args_and_arch


def _chosen(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, str | None]:
    """The architecture, task and criterion of a command line, or their defaults."""
    brief = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flags in (["--arch", "-a"], ["--task"], ["--criterion"]):
        brief.add_argument(*flags, nargs="?", default=parser.get_default(flags[0].lstrip("-")))
    return vars(brief.parse_known_args(words)[0])


def check_configuration(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.dataclass.initialize.add_defaults``, through which Hydra's configurations go before training."""

    def add_defaults(cfg: Any) -> None:
        refuse_unfit(_name(cfg.get("model")), _name(cfg.get("task")), _name(cfg.get("criterion")))
        stock(cfg)

    return add_defaults


def _name(node: Any) -> str | None:
    return node if isinstance(node, str) else getattr(node, "_name", None)


def check_checkpoint(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.models.build_model``: commands that read a checkpoint know its architecture no earlier."""

    def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
        refuse_unfit(_name(cfg), _name(getattr(task, "cfg", None) or getattr(task, "args", None)))
        return stock(cfg, task, from_checkpoint)

    return build_model


def _is_known(registry: Mapping[str, type], name: str | None) -> bool:
    return name is not None and name in registry and registry[name].__module__.startswith(_KNOWN)


def _named(flag: str, value: str | None, typed: Sequence[str]) -> str:
    chosen = not typed or any(word.split("=")[0] == flag for word in typed)
    return f"{flag} {value}" if chosen else f"{flag} {value} (the default)"


def _architectures_for(task: str | None) -> list[str]:
    """Ours that fit, without their sizes."""
    fitting = {
        name for name, model in MODEL_REGISTRY.items() if isinstance(model, NamesFittingTasks) and task in model.fits
    }
    return sorted(name for name in fitting if not any(name.startswith(f"{family}_") for family in fitting))


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Names that a user may take, without fairseq's tasks on made-up data."""
    return joined([name for name in names if not name.startswith("dummy_")], "or")
