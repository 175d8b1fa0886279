"""Modules of fairseq's commands, also where a command is the program itself (``python -m fairseq_cli.train``).

Python calls the module of a program ``__main__``. A process that multiprocessing starts, as fairseq-train does for each
GPU, runs the program's module once more, as ``__mp_main__``, and copies the names in it into a new module. The
functions go on to look names up in the first. Profilers and other programs that run a program have a ``__main__`` of
their own, so that only the functions that run know the command's.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

PROGRAMS = ("__main__", "__mp_main__")


def module_name(namespace: Mapping[str, Any]) -> str:
    """The name under which others import a module.

    Args:
        namespace: globals of the module.
    """
    name: str = namespace.get("__name__", "")
    if name not in PROGRAMS:
        return name
    spec = namespace.get("__spec__")
    if spec is not None:
        return str(spec.name)
    if getattr(namespace.get("cli_main"), "__module__", None) not in PROGRAMS:
        return name  # a program that at most calls a command
    path = Path(namespace.get("__file__") or name).resolve()  # python fairseq_cli/train.py
    return f"{path.parent.name}.{path.stem}"


def package_of(namespace: Mapping[str, Any]) -> str:
    """The package that a module with these globals belongs to."""
    return module_name(namespace).split(".")[0]


def command(name: str) -> dict[str, Any] | None:
    """The globals of a fairseq command, such as ``"train"``, if this process runs it."""
    wanted = f"fairseq_cli.{name}"
    for namespace in _programs():
        if module_name(namespace) == wanted:
            return namespace
    module = sys.modules.get(wanted)
    return None if module is None else vars(module)


def namespaces() -> Iterator[dict[str, Any]]:
    """Where functions of fairseq, and of the program, look names up."""
    yield from _programs()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("fairseq", "fairseq_cli") and module is not None:
            yield vars(module)


def _programs() -> list[dict[str, Any]]:
    """Globals of the program: its module's, those of functions in it, and those of functions that run."""
    found = [vars(sys.modules[name]) for name in PROGRAMS if name in sys.modules]
    found += [value.__globals__ for names in list(found) for value in names.values() if isinstance(value, FunctionType)]
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found.append(frame.f_globals)
        frame = frame.f_back
    return list({id(names): names for names in found if names.get("__name__") in PROGRAMS}.values())
