"""Calls that compiled code leaves alone. This module imports torch's compiler, which takes seconds, and is therefore
imported where such a call is made."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run_uncompiled(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a function outside of compiled code. Returns its result."""
    return function(*arguments, **keywords)
