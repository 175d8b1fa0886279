"""Launches of Triton's kernels that cost the host less than Triton's own, for small models, which the host limits.

At each launch Triton looks at every argument to find the code that was compiled for such arguments. Here one look-up
finds it, once Triton has compiled it and launched it first.
"""

import functools
import importlib.util
from typing import Any

from torch import Tensor

MOST = 4096
"""Launches remembered; texts of ever new lengths would make them endless."""
_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, settings: dict[str, Any], **others: Any) -> None:
    """Start a kernel of Triton's on the current device.

    Args:
        kernel: from ``triton.jit``, without a tuner.
        grid: programs along one to three axes.
        arguments, others: all that the kernel takes, in its order; the first is a tensor.
        settings: Triton's options of compilation, such as num_warps; always in the same order.
    """
    values = (*arguments, *others.values())
    kinds = [(x.dtype, x.data_ptr() % 16 == 0) if isinstance(x, Tensor) else x for x in values]
    key = (id(kernel), values[0].get_device(), *settings.values(), *kinds)
    compiled = _compiled.get(key)
    if compiled is not None:
        started = (*grid, 1, 1)
        compiled[started](*values)
        return
    found = kernel[grid](*arguments, **others, **settings)
    if hasattr(found, "packed_metadata") and _takes_all_arguments() and kernel.arg_names[-len(others) :] == [*others]:
        if len(_compiled) >= MOST:
            _compiled.clear()
        _compiled[key] = found


@functools.cache
def _takes_all_arguments() -> bool:
    """Whether compiled code takes all arguments; before Triton 3.4 those that are constants were left out."""
    return importlib.util.find_spec("triton.knobs") is not None
