"""Official TorchScale 0.3.0 on current Python and torch.

    pip install --no-deps torchscale==0.3.0

Its requirements, fairscale and timm, do not install with current torch. A dense model uses nothing of them but
wrappers that leave it as it is, so stand-ins are enough while torchscale is imported.
"""

import importlib
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

INSTALL = "pip install --no-deps torchscale==0.3.0"


class OfficialMissingError(Exception):
    """TorchScale cannot be imported; says how to get it."""


def load_official(path: Path | None) -> None:
    """Import torchscale, so that plain ``from torchscale... import`` works from here on.

    Args:
        path: a wheel, or the directory it was unpacked into; None for the installed package.

    Raises:
        OfficialMissingError: there is no torchscale.
    """
    where = None if path is None else [str(path)]
    if PathFinder.find_spec("torchscale", where) is None:
        absent = "is not installed" if path is None else f"is not in --torchscale {path}"
        raise OfficialMissingError(f"official TorchScale {absent}; {INSTALL}, or measure without it by --sides ours")
    sys.path[:0] = where or []
    stand_ins = _stand_ins()
    installed = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        for name in ("encoder_decoder", "retnet"):
            importlib.import_module(f"torchscale.architecture.{name}")
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(installed)


def official_version() -> str:
    """Version of the torchscale in use."""
    return metadata.version("torchscale")


def _stand_ins() -> dict[str, ModuleType]:
    functions: dict[str, list[str]] = {
        "fairscale": [],
        "fairscale.nn": ["checkpoint_wrapper", "wrap"],
        "timm": [],
        "timm.models": [],
        "timm.models.layers": ["drop_path"],
    }
    modules = {name: ModuleType(name) for name in functions}
    for name, members in functions.items():
        vars(modules[name]).update(dict.fromkeys(members, _unchanged))
    return modules


def _unchanged(x: Any, *_: Any, **__: Any) -> Any:
    return x
