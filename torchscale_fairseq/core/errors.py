"""The kind of error that the user can mend, as opposed to a bug of this package."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """An option, a file or the environment is not as it must be; mending that is up to the user.

    The message is one sentence that names the option or file as the user gave it, its value, the condition and a way
    out. Commands print it without a traceback and end with exit code 1.
    """


def joined(names: Sequence[str], word: str) -> str:
    """Names as a sentence lists them: ``a, b or c``.

    Args:
        names: one or more.
        word: before the last, such as ``or``.
    """
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause for the end of a sentence that names the known names most like ``name``; empty if none is like it."""
    near = nearest(name, known)
    return f"; did you mean {joined(near, 'or')}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names most like ``name``; none if none is like it."""
    names = list(known)
    return _with_words_of(name, names) or difflib.get_close_matches(name, names, n=1)


def _with_words_of(name: str, known: Iterable[str]) -> list[str]:
    """The shortest known names that begin like a name and have all its words, some of them misspelt: for ``gpt_small``,
    the small models of every method."""
    first, *rest = name.split("_")
    kin = [other.split("_") for other in known if other.split("_")[0] == first]
    kin = [words for words in kin if all(difflib.get_close_matches(word, words, n=1, cutoff=0.8) for word in rest)]
    shortest = min(map(len, kin), default=0)
    return ["_".join(words) for words in kin if len(words) == shortest]
