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

from torchscale_fairseq.hooks.options.model_options import ModelOptions
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed

Preset = Mapping[str, Any]
ConfigT = TypeVar("ConfigT")


def of_task(name: str, otherwise: int | None = None) -> Any:
    """The default of an option that the task decides: its option of this name, or ``otherwise`` if it has none."""
    return f"${{oc.select:task.{name},{'null' if otherwise is None else otherwise}}}"


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
    if f.metadata["choices"] and not all(choice in help_text for choice in f.metadata["choices"]):
        help_text += f"; one of {', '.join(f.metadata['choices'])}"
    if kind is bool and default is True:
        default = None
        help_text = re.sub(r" \(default: .*\)$", "", help_text) + " (on in this architecture)"
    if default is not None and default is not False and "(default" not in help_text:
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
