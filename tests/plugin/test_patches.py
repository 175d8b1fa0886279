"""The table of what is replaced in stock fairseq: it is applied, ordered, and documented."""

import re
from itertools import groupby
from typing import Any

from tests.fairseq_cli import REPOSITORY, run_beside_fairseq
from torchscale_fairseq.hooks.patches import PATCHES
from torchscale_fairseq.hooks.patching import Patch, replace

PAGE = (REPOSITORY / "docs/stock_repairs.md").read_text().split("\n## ")[0]
ROWS = [[cell.strip() for cell in line.split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")][1:]
"""Per row of the page: the failure, when it occurs, and the names of the repairs."""


def test_page_has_a_row_for_each_repair() -> None:
    def has_row(failure: str, name: str) -> bool:
        return any(failure in f"{shown} | {when}" and f"`{name}`" in repairs for shown, when, repairs in ROWS)

    assert [p.repair for p in PATCHES if p.failure and not has_row(p.failure, p.repair)] == []


def test_each_row_of_the_page_names_a_repair() -> None:
    known = {patch.repair for patch in PATCHES}
    named = {name for row in ROWS for name in re.findall(r"`([^`]+)`", row[2])}
    assert [name for name in named if name not in known and not (REPOSITORY / name).exists()] == []
    assert [row for row in ROWS if "`" not in row[2]] == []


def test_wrappers_of_one_function_stand_together() -> None:
    replaced = [(str(p.owner), p.name) for p in PATCHES if isinstance(p, Patch)]
    in_a_row = [key for key, _ in groupby(replaced)]
    assert len(in_a_row) == len(set(in_a_row))


def test_all_is_applied_and_a_second_time_changes_nothing() -> None:
    """Where no command runs, patches that need one are left out."""
    code = """
        import inspect, sys
        from torchscale_fairseq.hooks import patches, patching

        def state():
            modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("fairseq")]
            return [(module.__name__, name, id(value)) for module in modules for name, value in vars(module).items()]

        def is_applied(patch):
            replaced = inspect.getattr_static(patch.owner, patch.name)
            return patch.repair in patching.replaced_by(getattr(replaced, "__func__", replaced))

        before = state()
        patches.apply()
        print("unchanged" if state() == before else "changed")
        replacing = [p for p in patches.PATCHES if isinstance(p, patching.Patch)]
        needed = [p for p in replacing if not isinstance(p.owner, str) and p.when()]
        print("missing:", *(p.repair for p in needed if not is_applied(p)))
    """
    output = run_beside_fairseq(code, plugin=True).check().output
    assert "unchanged" in output
    sound_here = {"give_bart_translation_its_options"}  # a property, which holds no names
    assert set(re.search(r"missing:(.*)", output)[1].split()) <= sound_here, output


class Owner:
    @classmethod
    def of_class(cls, x: int) -> tuple[type, int]:
        return cls, x

    @staticmethod
    def static(x: int) -> int:
        return x

    @property
    def value(self) -> int:
        return 1


def one_more(stock):
    return lambda *args: (stock(*args), "more")


def test_class_methods_static_methods_and_properties_stay_such(monkeypatch) -> None:
    owner: Any = type("Owner", (Owner,), {})
    for name in ("of_class", "static", "value"):
        replace(owner, name, one_more)
        replace(owner, name, one_more)
    assert owner.of_class(2) == ((owner, 2), "more")
    assert owner.static(3) == (3, "more")
    assert owner().value == (1, "more")


def test_what_is_sound_stays_as_it_is() -> None:
    owner: Any = type("Owner", (Owner,), {})
    before = dict(vars(owner))
    for name in ("of_class", "static", "value"):
        replace(owner, name, lambda stock: stock)
    assert dict(vars(owner)) == before
