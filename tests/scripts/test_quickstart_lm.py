"""scripts/quickstart_lm.sh: its options, and (slow) the whole of what it does."""

import re
import sys
from pathlib import Path

import pytest

from tests.fairseq_cli import REPOSITORY, Finished, run_program

QUICKSTART = REPOSITORY / "scripts/quickstart_lm.sh"
SHARED = REPOSITORY / "scripts/lib.sh"


def test_help_names_every_option() -> None:
    printed = run_program([QUICKSTART, "--help"]).check().stdout
    handled = set(re.findall(r"^ +(--[a-z-]+)\) \w", SHARED.read_text(), flags=re.MULTILINE))
    assert handled == {"--arch", "--max-update", "--gpu", "--work-dir"}
    for option in handled:
        assert f"  {option} " in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lr 1", "unknown option '--lr'; options of fairseq-train go after --"),
        ("--arch", "--arch needs a value"),
        ("--max-update 0", "--max-update takes a whole number above 0, not '0'"),
    ],
)
def test_refuses(options: str, message: str) -> None:
    done = run_program([QUICKSTART, *options.split()])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"quickstart_lm.sh: {message}; see --help\n"


def test_a_work_directory_that_cannot_be_made_ends_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_program([QUICKSTART, "--work-dir", tmp_path / "file" / "work"], timeout=20)
    assert done.returncode == 1
    assert "Not a directory" in done.last_line


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["one"], ["one"]),
        (["one", "two words", "it's", "--none", ""], ["one 'two words' 'it'\"'\"'s' --none ''"]),
        (
            ["fairseq-train", "x" * 60, "--lr", "1e-3", "--adam-betas", "(0.9, 0.98)", "--cpu", "|&", "tee", "log"],
            [f"fairseq-train {'x' * 60} --lr 1e-3 \\", "    --adam-betas '(0.9, 0.98)' --cpu |& tee log"],
        ),
        (["a", "b " * 30, "c " * 30], [f"a '{'b ' * 30}' \\", f"    '{'c ' * 30}'"]),
    ],
)
def test_shows_commands_as_one_types_them(words: list[str], lines: list[str]) -> None:
    shown = run_program(["bash", "-c", f'source {SHARED}; show "$@"', "bash", *words]).check().stdout
    assert shown.splitlines() == lines


def quickstart(*options: object) -> Finished:
    """Runs the script with all the cores and the environment that runs the tests."""
    return run_program([QUICKSTART, *options], environment={"OMP_NUM_THREADS": "", "VENV": sys.prefix}, timeout=1800)


@pytest.mark.slow
def test_trains_a_model_that_continues_text(tmp_path: Path) -> None:
    first = quickstart("--work-dir", tmp_path).check().stdout
    figures = {row[1]: [float(word.replace(",", "")) for word in row[2:]] for row in rows_of_table(first)}
    assert figures["token"][1] <= 160
    assert figures["byte"][2] <= 2.0
    continued = re.findall(r"^prompt     (.+)\ncontinued  (.+)$", first, flags=re.MULTILINE)
    assert len(continued) == 3
    for prompt, text in continued:
        assert text.startswith(prompt)
    assert any(len(text) > len(prompt) + 20 for prompt, text in continued)
    second = quickstart("--work-dir", tmp_path).check().stdout
    assert "has finished this training" in second
    assert rows_of_table(second) == rows_of_table(first)
    assert second.splitlines()[-8:] == first.splitlines()[-8:]


def rows_of_table(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines() if re.match(r"per (token|byte) ", line)]


@pytest.mark.slow
def test_trains_a_model_that_fills_masks(tmp_path: Path) -> None:
    printed = quickstart("--work-dir", tmp_path, "--arch", "bert_magneto_small").check().stdout
    [perplexity] = re.findall(r"valid on 'test' subset .* ppl ([\d.]+)", printed)
    assert float(perplexity) <= 160
    assert len(re.findall(r"^  (?:  \S+ [\d.]+%){5}$", printed, flags=re.MULTILINE)) == 3


@pytest.mark.slow
def test_resumes(tmp_path: Path) -> None:
    options = ("--work-dir", tmp_path, "--arch", "gpt_xpos_small")
    quickstart(*options, "--max-update", 3, "--", "--batch-size", 1).check()
    resumed = quickstart(*options, "--max-update", 5, "--", "--batch-size", 1).check().stdout
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch 1 @ 3 updates\)", resumed)
    assert "is there already" in resumed
