#!/usr/bin/env python
"""torch's launcher, ending with the exit code of the processes that it has started, without tracebacks of its own.

usage: torchrun.py OPTIONS OF torch.distributed.run

Being a script and not the program ``torchrun``, it runs in the environment of the Python that starts it.
"""

import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def launch(words: Sequence[str]) -> int:
    """Start processes, wait for them, and return the exit code.

    Args:
        words: options of ``torch.distributed.run`` and the command.
    """
    try:
        main(list(words))
    except SignalException as received:
        return code_of(received.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"torchrun.py: process {rank} ended with exit code {code}", file=sys.stderr)
        return code
    return 0


def code_of(received: signal.Signals) -> int:
    """The exit code after a signal that was passed on: 75 where SIGUSR1 made processes save and end
    (docs/launching.md), otherwise 128 plus the signal's number, as shells have it."""
    saved_to_resume = received == signal.SIGUSR1 and os.environ.get("TORCHSCALE_SAVE_ON_SIGNAL") == "1"
    return os.EX_TEMPFAIL if saved_to_resume else 128 + received


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
