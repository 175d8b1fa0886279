"""Help comes at once: it waits for neither torch nor fairseq nor optional packages, and needs none of them."""

import pytest

from tests.fairseq_cli import REPOSITORY, run_python
from tests.tools.in_process import run_tool
from tests.tools.subcommands import ALL

HEAVY = ("torch", "fairseq", "numpy", "sentencepiece", "sacrebleu", "babel", "num2words", "PIL", "matplotlib")
SCRIPTS = [path for path in sorted((REPOSITORY / "scripts").rglob("*.py")) if "__main__" in path.read_text()]
SCRIPTS = [path for path in SCRIPTS if path.parent.name != "scripts" or "ArgumentParser" in path.read_text()]
"""Those that have options; others take words as they are, for shell scripts."""
SHOW = """
import runpy, sys

sys.modules["fairseq"] = sys.modules["torch._dynamo"] = None
for script in {scripts!r}:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as request:
        assert not request.code, script
    except ImportError as error:
        sys.exit(f"{{script}} --help: {{error}}")
    else:
        sys.exit(f"{{script}} ran")
"""
LOAD_ALL = """
import sys

sys.modules.update(dict.fromkeys({heavy!r}))
from torchscale_fairseq.tools.command import make_parser

def load(parser):
    parser.load()
    return 1 + sum(map(load, parser.subcommands.values()))

print(load(make_parser()))
"""


def test_subcommands_import_nothing_heavy() -> None:
    """So their help, and the completion, come within a moment and without optional packages."""
    assert int(run_python(LOAD_ALL.format(heavy=HEAVY)).check().stdout) == len(ALL) > 25


def test_overview_imports_no_subcommand() -> None:
    code = """
    import sys
    from torchscale_fairseq.tools.command import make_parser
    make_parser().format_help()
    print([name for name in sys.modules if name.startswith("torchscale_fairseq.tools.")])
    """
    loaded = {"torchscale_fairseq.tools.command", "torchscale_fairseq.tools.packages"}
    assert set(eval(run_python(code).check().stdout)) == loaded


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help(words: list[str]) -> None:
    shown = run_tool(*words, "--help").check().stdout
    assert shown.startswith(f"usage: {' '.join(['torchscale-fairseq', *words])} ")
    assert "\nexample:\n  " in shown or "SUBCOMMAND --help explains" in shown


def test_help_of_scripts_waits_for_nothing() -> None:
    assert len(SCRIPTS) > 8
    shown = run_python(SHOW.format(scripts=list(map(str, SCRIPTS)))).check().stdout
    assert shown.count("usage: ") >= len(SCRIPTS)
