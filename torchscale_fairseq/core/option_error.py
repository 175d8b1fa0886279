"""Errors of options, kept as data and put into words for the place where the option was typed."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import InputError

_MENTION = re.compile(r"\{([\w.]+)(=|\(\))?\}")


def mentioned(condition: str) -> list[str]:
    """The options that a condition names, as ``OptionError`` takes it."""
    return list(dict.fromkeys(match[1] for match in _MENTION.finditer(condition)))


class Surface:
    """How options are spelt where they are typed; this one is Python: ``name=value``."""

    def name(self, option: str) -> str:
        """The option alone."""
        return option

    def mention(self, option: str, value: Any) -> str:
        """The option with a value that it has."""
        return f"{option}={value}"

    def setting(self, option: str, value: Any) -> str | None:
        """Text to be typed for a new value, or None if it cannot be typed here."""
        return f"{option}={value!r}"

    def can_drop(self, option: str) -> bool:
        """Whether the option is the user's to leave away."""
        return True

    def context(self, options: Iterable[str]) -> str:
        """A sentence on where values of these options come from, if not from the user; may be empty."""
        return ""


class OptionError(InputError):
    """An option has a value that it cannot take, or options contradict each other.

    Args:
        option: the first of them.
        value: its value.
        condition: a clause on what must hold. ``{name}`` stands for an option, ``{name()}`` for it and its value in
            parentheses, ``{name=}`` for it set to its value.
        remedies: ways out, each a new value per option, None to leave the option away.
        others: values of the other options in the condition.
        advice: a clause around the remedies, whose place is ``{}``; or one that names their values in its own words.
    """

    def __init__(
        self,
        option: str,
        value: Any,
        condition: str,
        remedies: Iterable[Mapping[str, Any]],
        *,
        others: Mapping[str, Any] | None = None,
        advice: str = "{}",
    ):
        super().__init__(option, value, condition)
        self.option, self.value, self.condition = option, value, condition
        self.remedies = [dict(remedy) for remedy in remedies]
        self.values = {**(others or {}), option: value}
        self.advice = advice
        self.surface = Surface()

    def on(self, surface: Surface) -> "OptionError":
        """This error, spelt for a surface."""
        self.surface = surface
        return self

    def possible_remedies(self) -> list[dict[str, Any]]:
        """The remedies that can be typed."""
        return [remedy for remedy in self.remedies if all(self._can_type(*change) for change in remedy.items())]

    def _can_type(self, option: str, value: Any) -> bool:
        if value is None:
            return self.surface.can_drop(option)
        return self.surface.setting(option, value) is not None

    def __str__(self) -> str:
        sentence = _MENTION.sub(self._spelt, self.condition)
        remedies = self.possible_remedies()
        if remedies:
            sentence += "; " + _MENTION.sub(self._spelt, self.advice).replace("{}", self._in_words(remedies))
        return f"{sentence}. {self.surface.context(mentioned(self.condition))}".rstrip()

    def _spelt(self, match: re.Match[str]) -> str:
        option, form = match[1], match[2]
        if form == "=":
            return self.surface.mention(option, self.values[option])
        return self.surface.name(option) + (f" ({self.values[option]})" if form else "")

    def _in_words(self, remedies: list[dict[str, Any]]) -> str:
        """``drop a and give b=1 or c=2``: the changes that all remedies share come first."""
        shared = [change for change in remedies[0].items() if all(change in r.items() for r in remedies)]
        rest = [[change for change in r.items() if change not in shared] for r in remedies]
        clauses = [self._clause(shared)] if shared else []
        if any(rest):
            clauses.append(_joined([self._clause(changes) for changes in rest], " or "))
        return " and ".join(clauses)

    def _clause(self, changes: list[tuple[str, Any]]) -> str:
        words: dict[str, list[str]] = {"drop": [], "add": [], "give": []}
        for option, value in changes:
            verb = "drop" if value is None else "add" if value is True else "give"
            typed = self.surface.name(option) if value is None else self.surface.setting(option, value)
            words[verb].append(str(typed))
        return " and ".join(f"{verb} {' and '.join(typed)}" for verb, typed in words.items() if typed)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (dict(self.__dict__), type(self))


def not_among(option: str, value: Any, choices: Sequence[str], reason: str = "") -> OptionError:
    """The error of an option whose value is none of its choices; it suggests the nearest one.

    Args:
        reason: a clause after the choices, such as ", which need a mask".
    """
    nearest = (*difflib.get_close_matches(str(value), choices, n=1), choices[0])[0]
    condition = f"{{{option}}} ({value!r}) must be one of {', '.join(choices)}{reason}"
    return OptionError(option, value, condition, [{option: nearest}])


def _restored(state: dict[str, Any], kind: type[OptionError]) -> OptionError:
    error = kind.__new__(kind, state["option"], state["value"], state["condition"])
    error.__dict__.update(state)
    return error


def _joined(clauses: list[str], word: str) -> str:
    """Clauses of one verb name it once: ``give a or b``."""
    verbs = {clause.split()[0] for clause in clauses}
    if len(verbs) == 1 and all(" and " not in clause for clause in clauses):
        return word.join([clauses[0], *(clause.split(" ", 1)[1] for clause in clauses[1:])])
    return f",{word}".join(clauses)
