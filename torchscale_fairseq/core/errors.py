"""The kind of error that the user can mend, as opposed to a bug of this package."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """An option, a file or the environment is not as it must be; mending that is up to the user.

    The message is one sentence that names the option or file as the user gave it, its value, the condition and a way
    out. Commands print it without a traceback and end with exit code 1.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause for the end of a sentence that names the known name most like ``name``; empty if none is like it."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
