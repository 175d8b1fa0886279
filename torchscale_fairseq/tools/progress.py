"""Progress bars: on stderr, and only where that is a terminal."""

import sys
from collections.abc import Collection
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Collection[Item], what: str, unit: str, *, prints: bool = False) -> Collection[Item]:
    """The items, with a bar that advances as they are taken.

    Args:
        items: a collection of known length.
        what: is done with them, such as "reading".
        unit: the name of one of them.
        prints: each item is printed to stdout; there is no bar if that is a terminal, too.
    """
    from tqdm import tqdm

    disable = True if prints and sys.stdout.isatty() else None  # None: unless stderr is a terminal
    bar: Collection[Item] = tqdm(items, desc=what, unit=f" {unit}", disable=disable)
    return bar
