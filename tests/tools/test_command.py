"""torchscale-fairseq: what it says about words, packages and environments that it cannot use."""

import importlib.util
import sys
from unittest import mock

import pytest

from tests.fairseq_cli import TOOL, run_program
from tests.tools.in_process import run_tool
from torchscale_fairseq import __version__
from torchscale_fairseq.core.ops.backends import ATTENTION
from torchscale_fairseq.core.ops.retention_forms import RETENTION
from torchscale_fairseq.tools.packages import OPTIONAL, REQUIRED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("averag-checkpoint", "no subcommand averag-checkpoint; did you mean average-checkpoints? (--help lists all)"),
        ("convert packbitnet", "no subcommand packbitnet; did you mean pack-bitnet? (--help lists all)"),
        ("convert pack-bitnet in.pt out.pt --fast", "unknown: --fast"),
        ("average-checkpoints --inputs a --outputs b --output c", "unknown: --outputs b; did you mean --output?"),
    ],
)
def test_unknown_words_get_a_hint(words: str, message: str) -> None:
    done = run_tool(*words.split())
    assert done.returncode == 2 and done.last_line.endswith(f": error: {message}")


@pytest.mark.parametrize("words", [[], ["convert"], ["data"]], ids=" ".join)
def test_without_a_subcommand_the_help_is_shown(words: list[str]) -> None:
    done = run_tool(*words)
    assert done.returncode == 2 and "\nsubcommands:\n" in done.stderr


@pytest.mark.parametrize(
    ("module", "words", "remedy"),
    [
        ("sacrebleu", ["score-translation", __file__, "--reference", __file__], "pip install sacrebleu"),
        ("PIL", ["data", "draw-survival", "{folder}/discs"], "pip install pillow"),
        ("shtab", ["completion", "fish"], "pip install shtab"),
        ("fairseq", ["classify-images", "--checkpoint", "none.pt", "none.png"], "--no-deps fairseq-fixed=="),
    ],
)
def test_a_missing_package_is_named(
    module: str, words: list[str], remedy: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = [word.format(folder=tmp_path_factory.mktemp("made")) for word in words]
    with mock.patch.dict(sys.modules, {module: None}):
        done = run_tool(*words)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "which is not installed: pip install " in done.last_line and remedy in done.last_line


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered: str) -> None:
    words = ["bash", "-c", '"$@" | :; exit ${PIPESTATUS[0]}', "bash", *TOOL, "data", "encode-text", "--help"]
    assert run_program(words, environment={"PYTHONUNBUFFERED": unbuffered}).stderr == ""


def test_environment_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is needed most where something is missing."""
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else found(name))
    shown = run_tool("environment").check().stdout
    assert "not installed: pip install torch\n" in shown and "backends" not in shown


def test_version() -> None:
    assert run_tool("version").check().stdout == f"torchscale-fairseq {__version__}\n"


def test_environment_lists_packages_and_backends() -> None:
    shown = run_tool("environment").check().stdout
    assert all(f"\n  {package.distribution} " in shown for package in [*REQUIRED, *OPTIONAL])
    for option, backends in (("--attention-backend", ATTENTION), ("--retention-backend", RETENTION)):
        assert all(f"\n  {option} {backend.name} " in shown for backend in backends)
    assert "can be chosen" in shown and "cannot be chosen: needs" in shown
