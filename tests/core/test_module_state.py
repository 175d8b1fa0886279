"""No module keeps state of a run: parameters, arguments and objects carry it. Caches of functools are no state."""

import ast
from collections.abc import Iterator

import pytest

from tests.sources import trees

CHANGING = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "reset"),
    *("set", "setdefault", "sort", "update", "__setitem__"),
}
"""Methods that change a container or a context variable."""
ALLOWED = {
    # fairseq's build_model(cfg, task) hands nothing on to the layers that are built within
    ("torchscale_fairseq.core.parallel.groups", "_splitting"),
    # set by a context manager of fairseq, within which it builds the model by another function
    ("torchscale_fairseq.hooks.sharding.building", "_deferred"),
    # what the end of the process has to wait for, which no object outlives
    ("torchscale_fairseq.hooks.stock.batches", "_reading"),
    # caches that functools cannot fill: Triton compiles, or chooses, within the launch whose result is kept
    ("torchscale_fairseq.core.ops.quick_launch", "_compiled"),
    ("torchscale_fairseq.core.ops.fla_launches", "_CHOSEN"),
    # set by a context manager around a step, for whatever layers the model calls, in threads of torch's too
    ("torchscale_fairseq.core.ops.side_by_side", "_sides"),
    ("torchscale_fairseq.core.parallel.gathering", "_batches"),
}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def changed_globals(module: ast.Module) -> set[str]:
    """Names of a module that its functions rebind, or whose content they change."""
    names = set(_bound(module))
    return {
        name
        for function in ast.walk(module)
        if isinstance(function, FUNCTIONS)
        for name in _changed(function)
        if name in names - _local(function) or name.startswith("global ")
    }


def _bound(module: ast.Module) -> Iterator[str]:
    """Names that a module gives to values, functions and classes of its own."""
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name
        for target in _targets(statement):
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _local(function: ast.AST) -> set[str]:
    """Names that a function binds itself."""
    bound = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    return bound | {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _changed(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Global):
            yield from (f"global {name}" for name in node.names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            yield from _root(node.func.value)
        for target in _targets(node):
            if isinstance(target, ast.Subscript | ast.Attribute):
                yield from _root(target)


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign | ast.Delete):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else []


def _root(expression: ast.expr) -> Iterator[str]:
    """The name that a chain of attributes and subscripts begins with."""
    while isinstance(expression, ast.Attribute | ast.Subscript):
        expression = expression.value
    if isinstance(expression, ast.Name):
        yield expression.id


@pytest.mark.parametrize(
    "change",
    [
        "def f():\n    global table\n    table = {}",
        "def f():\n    table['a'] = 1",
        "def f():\n    del table['a']",
        "def f():\n    table.update(a=1)",
        "def f():\n    table['a'].append(1)",
        "f = lambda: table.pop('a')",
        "def f():\n    f.calls = 1",
        "class A:\n    def f(self):\n        table.clear()",
    ],
)
def test_a_change_is_found(change: str) -> None:
    assert changed_globals(ast.parse(f"table = {{'a': []}}\n{change}"))


@pytest.mark.parametrize(
    "source",
    [
        "table = {}\ntable['a'] = 1",
        "table = {}\ndef f(table):\n    table['a'] = 1",
        "table = {}\ndef f():\n    return table['a'].copy()",
        "def f():\n    table = {}\n    table['a'] = 1",
        "@functools.cache\ndef f():\n    return {}",
    ],
)
def test_what_changes_nothing_is_left_alone(source: str) -> None:
    assert not changed_globals(ast.parse(source))


def test_no_module_keeps_state() -> None:
    found = {(module, name) for module, tree in trees().items() for name in changed_globals(tree)}
    assert found <= ALLOWED, "let a parameter, an argument or an object carry it"
    assert found >= ALLOWED, "no longer needed in ALLOWED"
