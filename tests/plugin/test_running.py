"""Which of fairseq's commands a process runs."""

import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairseq")

from torchscale_fairseq.hooks import running
from torchscale_fairseq.hooks.patching import replace

TRAIN = "def cli_main(): pass\ndef train(): pass\n"


def program(path: Path, text: str, name: str = "__main__") -> dict[str, Any]:
    """The globals of a program in a file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return runpy.run_path(str(path), run_name=name)


@pytest.mark.parametrize("name", running.PROGRAMS)
def test_a_command_run_by_its_path(name: str, tmp_path: Path) -> None:
    assert running.module_name(program(tmp_path / "fairseq_cli/train.py", TRAIN, name)) == "fairseq_cli.train"


def test_a_link_to_a_command(tmp_path: Path) -> None:
    names = program(tmp_path / "fairseq_cli/train.py", TRAIN)
    link = tmp_path / "mine.py"
    link.symlink_to(tmp_path / "fairseq_cli/train.py")
    assert running.module_name({**names, "__file__": str(link)}) == "fairseq_cli.train"


def test_a_program_that_calls_a_command_is_none(tmp_path: Path) -> None:
    """Even in a file of that name."""
    names = program(tmp_path / "fairseq_cli/train.py", "from shlex import split as cli_main\n")
    assert running.module_name(names) == "__main__"


def test_programs_without_a_file_or_with_a_spec() -> None:
    assert running.module_name({"__name__": "__main__"}) == "__main__"
    spec = types.SimpleNamespace(name="fairseq_cli.generate")
    assert running.module_name({"__name__": "__mp_main__", "__spec__": spec}) == "fairseq_cli.generate"
    assert running.module_name({"__name__": "fairseq.trainer", "__spec__": spec}) == "fairseq.trainer"


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of fairseq that has a function, among odd entries of sys.modules."""
    module = types.ModuleType("fairseq.stand_in")
    exec("def function(): return 'stock'", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, odd in {"none": None, "number": 1, "nameless": types.SimpleNamespace(__name__=None)}.items():
        monkeypatch.setitem(sys.modules, f"odd_{name}", odd)
    return module


def test_a_function_is_replaced_under_each_name(stock: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = types.ModuleType("fairseq.stand_in.user")
    importing.renamed = stock.function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, importing.__name__, importing)
    replace(stock, "function", lambda _: lambda: "ours")
    assert stock.function() == importing.renamed() == "ours"


def test_functions_of_a_copied_program_look_elsewhere(
    stock: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that multiprocessing spawns."""
    text = "import sys\nfunction = sys.modules['fairseq.stand_in'].function\ndef main(): return function()\n"
    copied = types.ModuleType("__mp_main__")
    vars(copied).update(program(tmp_path / "program.py", text, "__mp_main__"))
    monkeypatch.setitem(sys.modules, "__mp_main__", copied)
    assert copied.main() == "stock"
    replace(stock, "function", lambda _: lambda: "ours")
    assert copied.main() == copied.function() == "ours"


def test_a_name_that_a_module_lacks_is_left_out(stock: types.ModuleType) -> None:
    before = {name: dict(vars(module)) for name, module in sys.modules.items() if name.startswith("fairseq")}
    replace(stock, "missing", lambda _: pytest.fail("there is nothing to wrap"))
    assert all(dict(vars(sys.modules[name])) == names for name, names in before.items())
