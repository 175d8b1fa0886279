"""Registers this package with stock fairseq.

``--user-dir torchscale_fairseq`` (or the path that ``torchscale-fairseq user-dir`` prints) is all a command
line needs: fairseq then imports the modules in ``tasks/`` and ``models/``, and those two packages call
:func:`register`. fairseq skips both folders when ``torchscale_fairseq`` is already imported in the process,
say for its core; a program that does so calls :func:`register` itself, or imports ``torchscale_fairseq.models``.
"""

import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALL_FAIRSEQ = "pip install --no-build-isolation --no-deps fairseq-fixed==0.12.3.1"
"""Installs the fairseq that this package is tested with (docs/stock_repairs.md)."""
_REGISTERING = ("criterions", "models", "optim", "tasks")
_registered = False


def user_dir() -> str:
    """The path to give to fairseq as ``--user-dir``."""
    return str(Path(__file__).resolve().parent)


def register() -> None:
    """Mend stock fairseq and import every criterion, model, optimizer and task of this package. Calls after the first
    do nothing.

    Raises:
        ModuleNotFoundError: fairseq is not installed.
    """
    global _registered
    if _registered:
        return
    if importlib.util.find_spec("fairseq") is None:
        raise ModuleNotFoundError(
            "torchscale_fairseq's models, tasks and criterions need fairseq; install it with "
            f"{INSTALL_FAIRSEQ} (docs/stock_repairs.md)",
            name="fairseq",
        )
    _registered = True  # first, since the packages imported below call this function
    try:
        with _root_logger_unchanged():
            importlib.import_module("fairseq.models")
        from torchscale_fairseq.hooks import patches
        from torchscale_fairseq.hooks.options import deferred_nodes

        patches.apply()
        with deferred_nodes.conversion_deferred():
            for name in _REGISTERING:
                _import_modules(f"{__package__}.{name}")
    except BaseException:
        _registered = False
        raise


@contextmanager
def _root_logger_unchanged() -> Iterator[None]:
    """Restore the level and the handlers of the root logger: a module of fairseq sets it to DEBUG when it is imported,
    so that a program would log the debug messages of every library."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _import_modules(package_name: str) -> None:
    """Import the package and each module in it whose name has no leading underscore."""
    package = importlib.import_module(package_name)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package_name}.{module.name}")
