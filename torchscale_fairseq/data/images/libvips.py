"""libvips, which reads image files."""

import logging
from typing import Any

WHITE = 255
"""Behind what is transparent."""


def on_white(image: Any) -> Any:
    """An image without transparency."""
    return image.flatten(background=WHITE) if image.hasalpha() else image


def load_vips() -> Any:
    """libvips, without its cache of results, which would keep files half read, and without its log: what it reports of
    a file is in the exception, too.

    Raises:
        ModuleNotFoundError: pyvips is not installed.
    """
    log = logging.getLogger("pyvips")
    if log.level != logging.ERROR:  # setting it empties a cache of all loggers, for each image
        log.setLevel(logging.ERROR)
    try:
        import pyvips
    except (ImportError, OSError):
        raise ModuleNotFoundError(
            "images need pyvips with libvips; install them with pip install torchscale-fairseq[vision].",
            name="pyvips",
        ) from None
    pyvips.cache_set_max(0)
    return pyvips
