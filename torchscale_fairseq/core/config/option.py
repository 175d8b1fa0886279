"""One option: how it is declared, and how names, types and ranges are checked on construction."""

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import did_you_mean
from ..option_error import OptionError, mentioned, not_among


def option(
    default: Any, help: str, *, choices: Sequence[str] | None = None, alias: str | None = None, core_only: bool = False
) -> Any:
    """A config field.

    Args:
        default: its value when the user says nothing.
        help: shown by ``--help`` and in docs/options.md; says the unit where there is one.
        choices: the values it takes, if they can be listed.
        alias: a second spelling of its command line flag.
        core_only: has no command line flag, since fairseq's data or task decide it.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "alias": alias, "core_only": core_only})


@dataclass(frozen=True, kw_only=True)
class Config:
    """The base of every config: checks names, types and ranges."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Config":
        _refuse_unknown_keywords(cls.__name__, [f.name for f in fields(cls)], args, kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in fields(self):
            _check_value(type(self).__name__, f.name, getattr(self, f.name), hints[f.name], f.metadata["choices"])
        self._check()

    def _check(self) -> None:
        """Conditions between fields; each class extends its parents'."""

    def _error(
        self, option: str, condition: str, *remedies: dict[str, Any], advice: str = "{}", **shown: Any
    ) -> OptionError:
        """An error whose values are this config's, but for those that are given; arguments as for ``OptionError``."""
        values = {
            name: shown[name] if name in shown else getattr(self, name) for name in (option, *mentioned(condition))
        }
        return OptionError(option, values[option], condition, remedies, others=values, advice=advice)


def _refuse_unknown_keywords(owner: str, known: list[str], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    if args:
        raise TypeError(f"{owner} takes keyword arguments only, such as vocab_size=64000.")
    for name in kwargs:
        if name not in known:
            hint = did_you_mean(name, known) or f"; its options are {', '.join(known)}."
            raise TypeError(f"{owner} has no option {name}{hint}")


def _check_value(owner: str, name: str, value: Any, hint: Any, choices: Sequence[str] | None) -> None:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    ok = any(
        value is None
        if kind in (None, types.NoneType)
        else isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind is float
        else isinstance(value, typing.get_origin(kind) or kind) and not (kind is int and isinstance(value, bool))
        for kind in allowed
    )
    if not ok:
        wanted = " or ".join("None" if k is types.NoneType else k.__name__ for k in allowed)
        raise TypeError(f"{owner}: {name} must be {wanted}, got {value!r}.")
    if choices is not None and value is not None and value not in choices:
        raise not_among(name, value, choices)


def check_range(name: str, value: float, low: float) -> None:
    if value < low:
        raise OptionError(name, value, f"{{{name}()}} must be at least {low}", [{name: low}])


def check_probability(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise OptionError(name, value, f"{{{name}()}} must be at least 0 and below 1", [{name: 0.1}])


def nearest_divisor(width: int, heads: int) -> int:
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(h - heads))


def even_divisions(option: str, width: int, heads: int) -> list[dict[str, int]]:
    """The number of heads nearest to ``heads`` whose width is even, as a remedy; none if the whole width is odd."""
    return [{option: nearest_divisor(width // 2, heads)}] if width % 2 == 0 else []
