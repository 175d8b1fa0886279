"""torchscale-fairseq completion: scripts that shells understand."""

import shutil
from pathlib import Path

import pytest

from tests.fairseq_cli import Finished, run_program
from tests.tools.in_process import run_tool

COMPLETE = """
source "$1"
COMP_WORDS=($2)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_torchscale_fairseq torchscale-fairseq "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "torchscale-fairseq.bash"
    path.write_text(run_tool("completion", "bash").check().stdout)
    return path


def complete(script: Path, typed: str) -> Finished:
    return run_program(["bash", "-c", COMPLETE, "bash", script, typed], cwd=script.parent)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("torchscale-fairseq con", ["convert"]),
        ("torchscale-fairseq convert to-", ["to-safetensors", "to-torchscale"]),
        ("torchscale-fairseq data prepare-translation --source", ["--source-lang"]),
        ("torchscale-fairseq data train-tokenizer --model-type b", ["bpe"]),
        ("torchscale-fairseq convert pack-bitnet torchscale", ["torchscale-fairseq.bash"]),
    ],
)
def test_bash_completes(script: Path, typed: str, expected: list[str]) -> None:
    assert complete(script, typed).check().stdout.split() == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_all_subcommands(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(run_tool("completion", shell).check().stdout)
    assert all(word in path.read_text() for word in ("merge-experts", "prepare-language", "--num-epoch-checkpoints"))
    if shutil.which(shell):
        run_program([shell, "--no-execute", path]).check()
