"""Launches of Triton's kernels that cost the host less than Triton's own, for small models, which the host limits.

At each launch Triton looks at every argument to find the code that was compiled for such arguments. Here one look-up
finds it, once Triton has compiled it and launched it first. Compiled code is given addresses in place of tensors, each
of which it would ask the driver about.
"""

import functools
import importlib.util
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from torch import Tensor

MOST = 4096
"""Launches remembered; texts of ever new lengths would make them endless."""
_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, settings: dict[str, Any], **others: Any) -> Any | None:
    """Start a kernel of Triton's on the current device.

    Args:
        kernel: from ``triton.jit``, without a tuner.
        grid: programs along one to three axes.
        arguments, others: all that the kernel takes, in its order; the first is a tensor.
        settings: Triton's options of compilation, such as num_warps; always in the same order.

    Returns:
        What Triton compiled, or None if it does not take all arguments in their order.
    """
    values = (*arguments, *others.values())
    plain = [x.data_ptr() if isinstance(x, Tensor) else x for x in values]
    kinds = [x if x is y else (x.dtype, y % 16 == 0) for x, y in zip(values, plain, strict=True)]
    key = (id(kernel), values[0].get_device(), *settings.values(), *kinds)
    compiled = _compiled.get(key)
    if compiled is not None:
        _started(compiled, grid)(*plain)
        return compiled
    found = kernel[grid](*arguments, **others, **settings)
    if hasattr(found, "packed_metadata") and _takes_all_arguments() and kernel.arg_names[-len(others) :] == [*others]:
        if len(_compiled) >= MOST:
            _compiled.clear()
        _compiled[key] = found
        return found
    return None


class Repeats:
    """Launches that start again with other tensors and everything else the same, which the caller has a key for."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Callable[..., None], list[Any], list[int]]] = {}

    def start(self, key: Hashable, tensors: Iterable[Tensor | None]) -> bool:
        """Start the launch of a key. Returns False if none is known, or if it was compiled for other addresses.

        Args:
            key: equal for launches with equal grids and arguments, and with tensors of equal dtypes.
            tensors: in the order in which they were given to ``keep``.
        """
        known = self._known.get(key)
        if known is None:
            return False
        start, arguments, places = known
        arguments = arguments.copy()
        for place, tensor in zip(places, tensors, strict=True):
            if tensor is not None:
                arguments[place] = address = tensor.data_ptr()
                if address % 16:
                    return False
        start(*arguments)
        return True

    def keep(
        self, key: Hashable, compiled: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], tensors: Iterable[str]
    ) -> None:
        """Know a launch from now on, if all of its tensors lie at multiples of 16 bytes.

        Args:
            key, tensors: as for ``start``; tensors by name.
            compiled, grid: of ``launch``.
            arguments: likewise, all by name and in the kernel's order.
        """
        names, given = list(arguments), [arguments[name] for name in tensors]
        if any(x is not None and x.data_ptr() % 16 for x in given):
            return
        if len(self._known) >= MOST:
            self._known.clear()
        constants = [None if isinstance(x, Tensor) else x for x in arguments.values()]
        self._known[key] = _started(compiled, grid), constants, [names.index(name) for name in tensors]


def _started(compiled: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """Takes the arguments of compiled code and starts it."""
    programs = (*grid, 1, 1)
    start: Callable[..., None] = compiled[programs]
    return start


@functools.cache
def _takes_all_arguments() -> bool:
    """Whether compiled code takes all arguments; before Triton 3.4 those that are constants were left out."""
    return importlib.util.find_spec("triton.knobs") is not None
