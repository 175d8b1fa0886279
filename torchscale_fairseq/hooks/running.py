"""Modules of fairseq's commands, also where a command is the program itself (``python -m fairseq_cli.train``).

Python calls the module of a program ``__main__``. A process that multiprocessing starts, as fairseq-train does for each
GPU, runs the program's module once more, as ``__mp_main__``, and copies the names in it into a new module. The
functions go on to look names up in the first.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
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
    path = Path(namespace.get("__file__") or name)  # python fairseq_cli/train.py
    return ".".join((*path.parts[:-1], path.stem)[-2:])


def package_of(namespace: Mapping[str, Any]) -> str:
    """The package that a module with these globals belongs to."""
    return module_name(namespace).split(".")[0]


def command(name: str) -> ModuleType | None:
    """The module of a fairseq command, such as ``"train"``, if this process runs it."""
    wanted = f"fairseq_cli.{name}"
    main = sys.modules.get("__main__")
    if main is not None and module_name(vars(main)) == wanted:
        return main
    return sys.modules.get(wanted)


def namespaces() -> Iterator[dict[str, Any]]:
    """Where functions of fairseq, and of the program, look names up."""
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", {})
        if namespace.get("__name__") in PROGRAMS or package_of(namespace) in ("fairseq", "fairseq_cli"):
            yield namespace
    copied = vars(sys.modules["__mp_main__"]).values() if "__mp_main__" in sys.modules else ()
    of_functions = [value.__globals__ for value in copied if isinstance(value, FunctionType)]
    yield from {id(names): names for names in of_functions if names.get("__name__") in PROGRAMS}.values()
