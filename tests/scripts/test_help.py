"""Every script's --help comes at once: it waits for neither fairseq nor torch's compiler, which take seconds."""

from tests.fairseq_cli import REPOSITORY, run_python

SCRIPTS = [path for path in sorted((REPOSITORY / "scripts").rglob("*.py")) if "__main__" in path.read_text()]
SHOW = """
import runpy, sys

sys.modules["fairseq"] = sys.modules["torch._dynamo"] = None
for script, folder in {scripts!r}:
    sys.argv, sys.path[0] = [script, "--help"], folder
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as request:
        assert not request.code, script
    except ImportError as error:
        sys.exit(f"{{script}} --help: {{error}}")
    else:
        sys.exit(f"{{script}} ran")
"""


def test_help_waits_for_nothing() -> None:
    assert len(SCRIPTS) > 25
    shown = run_python(SHOW.format(scripts=[(str(path), str(path.parent)) for path in SCRIPTS])).check().stdout
    assert shown.count("usage: ") >= len(SCRIPTS)
