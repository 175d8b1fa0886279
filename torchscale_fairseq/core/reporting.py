"""Commands end with one sentence on stderr where the user can mend the cause, and with a traceback where not."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .errors import InputError
from .files import NO_ROOM

TRACEBACK = "TORCHSCALE_TRACEBACK"
"""Environment variable; with the value 1 every error comes with its traceback."""
FAILED, INTERRUPTED, UNREAD = 1, 130, 141
"""Exit codes: an error that the user can mend; Ctrl-C (128 + SIGINT); a reader such as head that has left
(128 + SIGPIPE)."""


def sentence_of(error: BaseException) -> str | None:
    """The sentence to show for an error, or None for one that only a traceback explains."""
    if isinstance(error, InputError):
        return str(error)
    if not isinstance(error, OSError):
        return None
    if error.errno is None:
        return str(error) or None
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"{error.strerror}; make room and run this again" if error.errno in NO_ROOM else None


def wants_traceback() -> bool:
    """Whether the environment requests tracebacks."""
    return os.environ.get(TRACEBACK) == "1"


def print_sentence(sentence: str, program: str | None = None) -> None:
    """Print ``program: sentence`` to stderr, after what is still to be written to stdout.

    Args:
        sentence: what the user should know.
        program: the command as it was typed; None: the file that the process was started with.
    """
    sys.stdout.flush()
    print(f"{program or Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None], program: str | None = None) -> NoReturn:
    """Run a command and end the process with its exit code.

    Args:
        main: the command; returns its exit code, or None for 0.
        program: the command as it was typed; None: the file that the process was started with.

    Raises:
        SystemExit: always, except where only a traceback explains the error.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print_sentence("interrupted by Ctrl-C", program)
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        code = UNREAD
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None or wants_traceback():
            raise
        print_sentence(sentence, program)
        code = FAILED
    sys.exit(code)
