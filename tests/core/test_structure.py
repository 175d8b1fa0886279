"""Small functions and files, imports without circles, and attributes that are looked for in one place."""

import ast
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from tests.sources import PACKAGE, trees

DROP_IN = "torchscale_fairseq.torchscale_api"
"""TorchScale's API, which reads options that other programs have made."""
OF_FAIRSEQ = {"_name", "cfg", "name", "scaler", "task"}
"""Attributes of fairseq's objects, which lack them in some versions and kinds."""


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    lines = _lines(function)
    return lines if docstring is None else lines - _lines(docstring)


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_functions_are_short() -> None:
    lengths = {
        f"{name}.{node.name}": length(node)
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert statistics.median(lengths.values()) <= 6
    assert not [name for name, lines in lengths.items() if lines >= 60]


def test_files_are_short() -> None:
    assert not [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400]


def imported(name: str, tree: ast.Module) -> Iterator[str]:
    """The modules of the package that a module imports when it is imported itself."""
    is_package = (PACKAGE.parent / name.replace(".", "/")).is_dir()
    for node in _at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            parts = name.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            members = [f"{source}.{alias.name}" for alias in node.names]
            yield from (member if member in trees() else source for member in members)


def _at_import(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.Lambda) and not _for_editors(child):
            yield from _at_import(child)


def _for_editors(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of a circle of imports; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_imports_have_no_circle() -> None:
    graph = {name: {other for other in imported(name, tree) if other in trees()} for name, tree in trees().items()}
    assert sum(map(len, graph.values())) > len(graph), "imports are not found"
    assert not circle(graph)


def probes(tree: ast.Module) -> set[str]:
    """Attributes that ``hasattr``, or ``getattr`` with a default, look for by name."""
    called = [
        (node.func.id, node.args)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    found = [args for name, args in called if name == "hasattr" or (name == "getattr" and args[2:])]
    return {str(args[1].value) for args in found if isinstance(args[1], ast.Constant)}


def test_attributes_that_may_be_missing_are_looked_for_in_one_module() -> None:
    """Others ask its function, or ``isinstance`` of a protocol (``hooks/contracts.py``)."""
    modules = defaultdict(list)
    for name, tree in trees().items():
        for attribute in set() if name.startswith(DROP_IN) else probes(tree) - OF_FAIRSEQ:
            modules[attribute].append(name)
    assert modules and not {attribute: names for attribute, names in modules.items() if len(names) > 1}
