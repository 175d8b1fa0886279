"""scripts/test.sh with --torch, --python and --export: which environment it makes, what it skips, and by which name.

Nothing is installed: a stand-in for setup.sh makes an environment whose Python prints what it runs.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.fairseq_cli import REPOSITORY, Finished, run_program

SETUP = """#!/usr/bin/env bash
VENV=${VENV:-$PWD/.venv}
echo "made ${VENV##*/} with ${PYTHON:-any Python} and torch ${TORCH:-as pinned}"
[ -z "$PIP_SAYS" ] || [ "${VENV##*/}" = .venv ] || { echo "$PIP_SAYS" >&2; exit 1; }
mkdir -p "$VENV/bin"
cp python "$VENV/bin/python"
"""
PYTHON = """#!/usr/bin/env bash
words="$*"
case "$words" in
  "-m pip index versions torch") [ -z "$NEWEST" ] || printf 'torch (%s)\\nAvailable versions: ...\\n' "$NEWEST" ;;
  *"pip"*) [ -z "$PIP_SAYS" ] || { echo "$PIP_SAYS" >&2; exit 1; } ;;
  *pytest*) echo "ran ${words#-m pytest }"; [ -z "$FAILING" ] || [[ $words != *"$FAILING"* ]] ;;
esac
"""
CORE, FAMILIES = "tests/core tests/parity", "tests/plugin -m family"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script and its stand-ins, and an interpreter 3.10 of pyenv."""
    (tmp_path / "scripts").mkdir()
    for name in ("test.sh", "lib.sh"):
        shutil.copy(REPOSITORY / "scripts" / name, tmp_path / "scripts")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    interpreter = tmp_path / "pyenv/versions/3.10.99/bin/python"
    interpreter.parent.mkdir(parents=True)
    for path, text in ((tmp_path / "scripts/setup.sh", SETUP), (tmp_path / "python", PYTHON), (interpreter, PYTHON)):
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def run(checkout: Path, *words: str, newest: str = "", pip_says: str = "", failing: str = "") -> Finished:
    variables = {"PYENV_ROOT": str(checkout / "pyenv"), "PATH": "/usr/bin:/bin"}
    variables |= {"NEWEST": newest, "PIP_SAYS": pip_says, "FAILING": failing}
    return run_program(["bash", checkout / "scripts/test.sh", *words], environment=variables, cwd=checkout)


def oldest() -> str:
    """The oldest torch that pyproject.toml allows."""
    found = re.search(r'"torch>=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("words", "torch"),
    [
        (["--torch", "2.7.1", "--python", "3.10"], "2.7.1"),
        (["--torch", "oldest", "--python", "3.10"], oldest()),
        (["--torch", "newest", "--python", "3.10"], "2.99.0"),
        (["--python", "3.10"], ""),
    ],
    ids=["given", "oldest", "newest", "pinned"],
)
def test_makes_an_environment_and_runs_core_parity_and_families(words: list[str], torch: str, checkout: Path) -> None:
    made, *ran = run(checkout, *words, newest="2.99.0").check().stdout.splitlines()
    name = f"venv-torch{torch}-python3.10" if torch else "venv-python3.10"
    assert made == f"made {name} with {checkout}/pyenv/versions/3.10.99/bin/python and torch {torch or 'as pinned'}"
    assert [line.startswith(f"ran {part}") for line, part in zip(ran, (CORE, FAMILIES), strict=True)] == [True, True]


@pytest.mark.parametrize("failing", [CORE, FAMILIES])
def test_a_failing_part_fails_after_the_other_has_run(failing: str, checkout: Path) -> None:
    done = run(checkout, "--python", "3.10", failing=failing)
    assert done.returncode == 1 and done.stdout.count("ran tests") == 2


def test_an_interpreter_that_is_not_there_is_skipped_by_its_name(checkout: Path) -> None:
    done = run(checkout, "--python", "3.99").check()
    assert done.stdout == "test.sh: skipped: python3.99 is not on this machine\n"


def test_a_torch_is_tested_with_another_interpreter(checkout: Path) -> None:
    skipped, made, *ran = run(checkout, "--python", "3.99", "--torch", "2.7.1").check().stdout.splitlines()
    assert skipped.startswith("test.sh: skipped: python3.99 is not on this machine; testing torch 2.7.1")
    assert made == "made venv-torch2.7.1 with any Python and torch 2.7.1" and len(ran) == 2


def test_packages_that_the_index_lacks_are_skipped_by_their_name(checkout: Path) -> None:
    says = "ERROR: No matching distribution found for torch==2.99.0"
    done = run(checkout, "--torch", "2.99.0", "--python", "3.10", pip_says=says).check()
    assert done.stdout.splitlines()[-1] == (
        f"test.sh: skipped: the package index has no torch==2.99.0 for {checkout}/pyenv/versions/3.10.99/bin/python"
    )
    none = run(checkout, "--torch", "newest", "--python", "3.10").check()
    assert "test.sh: skipped: the package index names no torch for" in none.stdout
    assert "ran " not in done.stdout + none.stdout


def test_another_failure_to_install_fails(checkout: Path) -> None:
    assert run(checkout, "--python", "3.10", pip_says="ERROR: No space left on device").returncode == 1


def test_exported_models_are_tested_in_the_same_environment(checkout: Path) -> None:
    made, ran = run(checkout, "--export").check().stdout.splitlines()
    assert made.startswith("made .venv with") and ran.startswith("ran tests/export tests/tools/test_examples.py")
    skipped = run(checkout, "--export", pip_says="ERROR: No matching distribution found for onnx==9").check()
    assert skipped.stdout.splitlines()[-1] == "test.sh: skipped: the package index has no onnx==9 for this interpreter"
    both = run(checkout, "--export", "--python", "3.10")
    assert both.returncode == 2 and "--export goes without --torch and --python" in both.last_line


def test_pinned_torch_is_among_those_that_are_allowed() -> None:
    pinned = re.search(r"^torch==([\d.]+)$", (REPOSITORY / "requirements/base.txt").read_text(), flags=re.MULTILINE)
    assert pinned
    assert tuple(map(int, pinned[1].split("."))) >= tuple(map(int, oldest().split(".")))
