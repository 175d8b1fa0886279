"""Serves ``torchscale`` by this package: programs that are written for TorchScale run unchanged.

``python -m torchscale_fairseq.as_torchscale program.py arguments`` runs a program (``-m module`` a module);
``import torchscale_fairseq.as_torchscale`` as a first line does so from within. An installed TorchScale is shadowed in
that process alone. See docs/drop_in.md.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

logger = logging.getLogger(__name__)

SERVED = "torchscale"
OURS = "torchscale_fairseq.torchscale_api"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds each module of ``torchscale`` under this package's name, and gives out the one module under both."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] != SERVED:
            return None
        ours = importlib.util.find_spec(OURS + fullname.removeprefix(SERVED))
        if ours is None:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=ours.submodule_search_locations is not None)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(OURS + spec.name.removeprefix(SERVED))
        self._specs = {**getattr(self, "_specs", {}), spec.name: module.__spec__}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module is complete; its own spec goes back to its place."""
        assert module.__spec__ is not None
        module.__spec__ = self._specs[module.__spec__.name]


def install() -> None:
    """From now on, serve ``torchscale`` by this package. Calls after the first do nothing.

    Raises:
        ImportError: another ``torchscale`` has been imported.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    loaded = sys.modules.get(SERVED)
    if loaded is not None and not getattr(loaded, "DROP_IN", False):
        raise ImportError(
            f"{SERVED} has been imported from {loaded.__file__}; import torchscale_fairseq.as_torchscale before it."
        )
    sys.meta_path.insert(0, _Finder())
    logger.info("torchscale is served by torchscale_fairseq (%s)", OURS)


def main() -> None:
    """Run the program, or with -m the module, that the command line names."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m torchscale_fairseq.as_torchscale (program.py | -m module) ...\n\n{__doc__}")
        raise SystemExit(0 if words else 2)
    if words[0] == "-m" and len(words) > 1:
        sys.argv = words[1:]
        sys.path.insert(0, "")
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


install()
if __name__ == "__main__":
    main()
