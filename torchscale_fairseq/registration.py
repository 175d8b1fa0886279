"""Mends stock fairseq and imports every criterion, encoder of text, model, optimizer and task of this package, when it
is imported.

``plugin.register`` imports it. Python runs a module once, also where what it imports asks for it again, and runs it
anew after an error.
"""

import importlib
import logging
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager

REGISTERING = ("criterions", "encoders", "models", "optim", "tasks")


def register_all() -> None:
    """Apply the patches, and import the packages in REGISTERING with their modules."""
    with _root_logger_unchanged():
        importlib.import_module("fairseq.models")
    from torchscale_fairseq.hooks import patches
    from torchscale_fairseq.hooks.options import deferred_nodes

    patches.apply()
    with deferred_nodes.conversion_deferred():
        for name in REGISTERING:
            _import_modules(f"{__package__}.{name}")


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


register_all()
