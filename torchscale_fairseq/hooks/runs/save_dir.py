"""Checks of a run's files before it trains: ``--restore-file`` exists, and no other run writes to ``--save-dir``."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Any

from fairseq.file_io import PathManager

from torchscale_fairseq.core.errors import InputError

DEFAULT = "checkpoint_last.pt"
LOCK = ".lock"


def check_restore_file(checkpoint: Any, suffix: str = "") -> None:
    """Refuse a ``--restore-file`` or ``--continue-once`` that does not exist, from which stock starts with fresh
    weights. ``checkpoint_last.pt`` of ``--save-dir`` may be missing: a first start has none.

    Args:
        checkpoint: fairseq's options of checkpoints.
        suffix: of this process's files, where processes hold parts of the model.

    Raises:
        InputError: there is no such file.
    """
    own = (DEFAULT, os.path.join(checkpoint.save_dir, DEFAULT))
    for flag, path in (
        ("--restore-file", checkpoint.restore_file),
        ("--continue-once", getattr(checkpoint, "continue_once", None)),
    ):
        if path is None or path in own:
            continue
        file = path.replace(".pt", f"{suffix}.pt") if suffix else path
        if not PathManager.isfile(PathManager.get_local_path(file)):
            raise InputError(
                f"{flag} ({file}) does not exist; name a checkpoint that does, or leave {flag} out to resume from "
                f"{own[1]} or, without one, to start afresh."
            )


def claim(folder: Path, suffix: str = "") -> IO[str]:
    """Keep other runs from writing to a folder until this process ends or the file returned is closed.

    The lock is POSIX's, which works on network file systems too, ends with the process however it ends, and is not
    inherited by the workers of data loaders. Where a file system has no locks, nothing is claimed.

    Args:
        folder: ``--save-dir``; it exists.
        suffix: of this process's files, where processes hold parts of the model.

    Raises:
        InputError: another process writes there.
    """
    file = (folder / f"{LOCK}{suffix}").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise InputError(
            f"--save-dir ({folder}) is in use by another run ({file.read().strip()}); give this run a folder of its "
            "own, or wait until the other run has ended."
        ) from None
    except OSError:
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
