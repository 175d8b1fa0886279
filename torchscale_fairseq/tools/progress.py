"""Progress bars: on stderr, and only where that is a terminal."""

from collections.abc import Collection
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Collection[Item], what: str, unit: str) -> Collection[Item]:
    """The items, with a bar that advances as they are taken.

    Args:
        items: a collection of known length.
        what: is done with them, such as "reading".
        unit: the name of one of them.
    """
    from tqdm import tqdm

    bar: Collection[Item] = tqdm(items, desc=what, unit=f" {unit}", disable=None)
    return bar
