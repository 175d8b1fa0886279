"""Registers this package with stock fairseq.

``--user-dir torchscale_fairseq`` (or the path that ``torchscale-fairseq user-dir`` prints) is all a command
line needs: fairseq then imports the modules in ``tasks/`` and ``models/``, and those two packages call
:func:`register`. fairseq skips both folders when ``torchscale_fairseq`` is already imported in the process,
say for its core; a program that does so calls :func:`register` itself, or imports ``torchscale_fairseq.models``.
"""

import importlib
import importlib.util
from pathlib import Path

INSTALL_FAIRSEQ = "pip install --no-build-isolation --no-deps fairseq-fixed==0.12.3.1"
"""Installs the fairseq that this package is tested with (docs/stock_repairs.md)."""


def user_dir() -> str:
    """The path to give to fairseq as ``--user-dir``."""
    return str(Path(__file__).resolve().parent)


def register() -> None:
    """Mend stock fairseq and import every criterion, model, optimizer and task of this package. Calls after the first
    do nothing.

    Raises:
        ModuleNotFoundError: fairseq is not installed.
    """
    if importlib.util.find_spec("fairseq") is None:
        raise ModuleNotFoundError(
            "torchscale_fairseq's models, tasks and criterions need fairseq; install it with "
            f"{INSTALL_FAIRSEQ} (docs/stock_repairs.md)",
            name="fairseq",
        )
    importlib.import_module("torchscale_fairseq.registration")
