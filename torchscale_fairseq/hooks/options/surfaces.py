"""How options are spelt on fairseq's two surfaces: flags of a command line, and Hydra's overrides.

An option with a dot is fairseq's own, ``distributed_training.ddp_backend``; one without is the model's.
"""

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig

from torchscale_fairseq.core.option_error import OptionError, Surface

GROUPS = ("optimizer", "criterion", "task", "lr_scheduler")
"""Options that choose a group of others."""


def flag_of(option: str) -> str:
    """An option as a flag of the command line."""
    return "--" + option.rpartition(".")[2].replace("_", "-")


class _Typed(Surface):
    """A surface where options are typed. An architecture has values of its own, which the user has not typed.

    Args:
        preset: values of the architecture, by option.
        given: the user's values, None where the user gave none; options that are not in it cannot be typed.
    """

    def __init__(self, preset: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None):
        self._preset, self._given = preset or {}, given

    def can_drop(self, option: str) -> bool:
        return self._can_type(option) and not self._is_preset(option)

    def context(self, options: Iterable[str]) -> str:
        ours = [f"{option}={self._preset[option]}" for option in options if self._is_preset(option)]
        return f"The architecture itself sets {', '.join(ours)}." if ours else ""

    def _can_type(self, option: str) -> bool:
        return self._given is None or option in self._given or "." in option

    def _is_preset(self, option: str) -> bool:
        given = None if self._given is None else self._given.get(option)
        return option in self._preset and given in (None, self._preset[option])


class Flags(_Typed):
    """``--name value``; a switch is on where it is given."""

    def name(self, option: str) -> str:
        return flag_of(option)

    def mention(self, option: str, value: Any) -> str:
        return self.name(option) if value is True else f"{self.name(option)} {value}"

    def setting(self, option: str, value: Any) -> str | None:
        if not self._can_type(option) or value is False:
            return None
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        return self.name(option) if value is True else f"{self.name(option)} {shlex.quote(text)}"


class HydraOverrides(_Typed):
    """``model.name=value``, to be typed with ``++``, which serves whether or not a configuration file has the key."""

    def name(self, option: str) -> str:
        if option == "arch":
            return "model._name"
        if option in GROUPS:
            return f"{option}._name"
        return option if "." in option else f"model.{option}"

    def mention(self, option: str, value: Any) -> str:
        return f"{self.name(option)}={_hydra_value(value)}"

    def setting(self, option: str, value: Any) -> str | None:
        override = f"++{self.mention(option, value)}"
        typed = f'"{override}"' if "'" in override else shlex.quote(override)
        return typed if self._can_type(option) else None


def _hydra_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    needs_quotes = isinstance(value, str) and not value.replace(".", "").replace("_", "").isalnum()
    return f"'{value}'" if needs_quotes else str(value)


def surface_in_use(preset: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None) -> Surface:
    """The surface of the command that runs; arguments as for ``Flags``."""
    hydra = HydraConfig.initialized() or "hydra" in sys.argv[0].rpartition("/")[2]
    return (HydraOverrides if hydra else Flags)(preset, given)


@contextmanager
def spelt_as_typed(preset: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within the block, spell errors of options for the surface in use; arguments as for ``Flags``."""
    try:
        yield
    except OptionError as error:
        spell(error, preset, given)
        raise


def spell(error: OptionError, preset: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None) -> None:
    """Spell an error for the surface in use, unless it is spelt already; arguments as for ``Flags``."""
    if not isinstance(error.surface, _Typed):
        error.on(surface_in_use(preset, given))
