"""Packages that some formats and tokenizers need."""

import importlib
from typing import Any

EXTRA = "formats"


def imported(module: str, needs: str) -> Any:
    """Import a package of the extra.

    Args:
        module: its name.
        needs: the data that needs it, for the message.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{needs} needs {package}; install it with pip install torchscale-fairseq[{EXTRA}].", name=package
        ) from None
