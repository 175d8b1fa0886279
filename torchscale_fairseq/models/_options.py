"""From a config class of the core to the dataclass that fairseq makes flags and Hydra keys of, and back.

fairseq turns a bool whose default is True into a flag that switches it off, so a bool that a preset turns on
is None here and the preset supplies True when the model is built.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Optional, TypeVar

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed

Preset = Mapping[str, Any]


@dataclasses.dataclass
class ModelOptions(FairseqDataclass):
    """Options of fairseq's side alone, of every model."""

    moe_checkpoint_format: ChoiceEnum(["merged", "sharded"]) = dataclasses.field(  # type: ignore[valid-type]
        default="merged",
        metadata={
            "help": (
                "merged: write one checkpoint file, independent of the number of processes; sharded: write the"
                " experts to one file per process next to it, for models larger than one machine's memory "
                "(default: merged)"
            )
        },
    )
    log_norms_interval: int = dataclasses.field(
        default=0,
        metadata={
            "help": (
                "log the norms of each layer's gradient and update to TensorBoard (run norms) every N updates; "
                "0: never (default: 0)"
            )
        },
    )
    peak_tflops: Optional[float] = dataclasses.field(  # noqa: UP045
        default=None,
        metadata={
            "help": (
                "peak rate of one device in TFLOP/s, to which mfu in the log is relative (default: the rate of"
                " common GPUs is known)"
            )
        },
    )
    checkpoint_format: Optional[ChoiceEnum(["merged", "sharded"])] = dataclasses.field(  # type: ignore[valid-type]  # noqa: UP045
        default=None,
        metadata={
            "help": "with --ddp-backend fully_sharded, sharded (the default): every process writes its slices to a "
            "folder of torch.distributed.checkpoint; merged: the first process writes all of it to one file"
        },
    )
    async_checkpoint: bool = dataclasses.field(
        default=False,
        metadata={"help": "training goes on while a sharded checkpoint is written, from a copy in host memory"},
    )
    fsdp_shard_size: int = dataclasses.field(
        default=0,
        metadata={
            "help": "with --ddp-backend fully_sharded, processes that hold one copy of the model together, of which "
            "there are replicas then (hybrid sharding); 0: all processes"
        },
    )
    seq_parallel: bool = dataclasses.field(
        default=False,
        metadata={"help": "split each sequence over several processes; only with dilated attention"},
    )
    seq_parallel_size: int = dataclasses.field(
        default=0,
        metadata={"help": "number of processes that share a sequence with --seq-parallel; 0: all (default: 0)"},
    )


ConfigT = TypeVar("ConfigT")


def of_task(name: str) -> Any:
    """The default of an option that the task decides: its option of this name, or None if it has none."""
    return f"${{oc.select:task.{name},null}}"


def flag_fields(config_class: type) -> list[dataclasses.Field[Any]]:
    """The fields of a config class that have a flag."""
    return [f for f in dataclasses.fields(config_class) if not f.metadata["core_only"]]


def fairseq_dataclass(
    name: str,
    config_class: type,
    preset: Preset,
    base: type = ModelOptions,
    from_task: Sequence[str] = (),
) -> type:
    """A dataclass with one field per option of a config class.

    Args:
        name: of the dataclass.
        config_class: a config of the core.
        preset: values that differ from the config's defaults.
        base: fields that belong to fairseq's side of the model alone.
        from_task: options that are the task's, under the same name.
    """
    unknown = set(preset) - {f.name for f in flag_fields(config_class)}
    assert not unknown, f"{name} presets {unknown}, which {config_class.__name__} lacks"
    hints = typing.get_type_hints(config_class)
    derived = [
        (f.name, Optional[int], dataclasses.field(default=of_task(f.name)))  # noqa: UP045 - see below
        if f.name in from_task
        else _derived_field(f, hints[f.name], preset.get(f.name, f.default))
        for f in flag_fields(config_class)
    ]
    return dataclasses.make_dataclass(name, derived, bases=(base,))


def _derived_field(f: dataclasses.Field[Any], hint: Any, default: Any) -> tuple[str, Any, Any]:
    kind = next(k for k in typing.get_args(hint) or (hint,) if k is not types.NoneType)
    optional = isinstance(hint, types.UnionType) or (kind is bool and default is True)
    help_text = f.metadata["help"]
    if f.metadata["choices"]:
        help_text += f"; one of {', '.join(f.metadata['choices'])}"
    if kind is bool and default is True:
        default = None
        help_text = re.sub(r" \(default: .*\)$", "", help_text) + " (on in this architecture)"
    if default is not None and default is not False and "default" not in help_text:
        help_text += f" (default: {default})"
    metadata = {"help": help_text}
    if f.metadata["alias"]:
        metadata["argparse_alias"] = f.metadata["alias"]
    return f.name, Optional[kind] if optional else kind, dataclasses.field(default=default, metadata=metadata)  # noqa: UP045 - fairseq reads typing's form only


def core_config(cfg: Any, config_class: type[ConfigT], preset: Preset, **decided: Any) -> ConfigT:
    """The core's config for a model's part of fairseq's configuration.

    Args:
        cfg: an instance of ``fairseq_dataclass``, or the same values as OmegaConf or Namespace.
        config_class: a config of the core.
        preset: as given to ``fairseq_dataclass``.
        decided: options that dictionary and task decide; they win.

    Raises:
        OptionError: the options contradict each other; spelt as the user typed them.
    """
    names = [f.name for f in flag_fields(config_class)]
    given = {name: getattr(cfg, name, None) for name in names}
    values = {name: preset.get(name) if value is None else value for name, value in given.items()}
    with spelt_as_typed(preset, given):
        return config_class(**({name: v for name, v in values.items() if v is not None} | decided))
