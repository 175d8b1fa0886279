"""The commands of the documents are understood: fairseq's parsers accept every option, and so does
torchscale-fairseq; scripts know theirs."""

import re
import shlex
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, PLACEHOLDERS, code_blocks
from tests.fairseq_cli import REPOSITORY, run_beside_fairseq
from torchscale_fairseq.tools.command import PROGRAM, make_parser

PARSE = """
from fairseq import options

PARSERS = {{
    "preprocess": options.get_preprocessing_parser,
    "train": options.get_training_parser,
    "generate": options.get_generation_parser,
    "interactive": options.get_interactive_generation_parser,
    "eval-lm": options.get_eval_lm_parser,
    "validate": options.get_validation_parser,
}}
for words in {commands!r}:
    print(words)
    parser = PARSERS[words[0].removeprefix("fairseq-")]()
    options.parse_args_and_arch(parser, words[1:]) if words[0] != "fairseq-preprocess" else parser.parse_args(words[1:])
"""


def commands() -> list[list[str]]:
    """The words of every command in the documents' bash blocks, but for lines with a placeholder."""
    blocks = [block for document in DOCUMENTS for block in code_blocks(document) if block.language == "bash"]
    lines = "\n".join(block.text for block in blocks).replace("\\\n", " ").splitlines()
    complete = [line for line in lines if not any(word in line for word in PLACEHOLDERS)]
    return [part for line in complete if (words := shlex.split(line, comments=True)) for part in _parts(words)]


def _parts(words: list[str]) -> list[list[str]]:
    """A launcher and the command of fairseq that it starts; other commands in one part."""
    starts = [i for i, word in enumerate(words) if re.match("fairseq-[a-z]", word)]
    return [words[: starts[0]], words[starts[0] :]] if starts and starts[0] else [words]


def test_fairseq_understands_its_commands() -> None:
    ours = [words for words in commands() if re.match("fairseq-(?!hydra)", words[0])]
    assert len(ours) > 25
    run_beside_fairseq(PARSE.format(commands=ours), plugin=True).check()


def script_of(words: list[str]) -> Path | None:
    """The file of the repository that a command runs by its path, or by its name after ``python -m``."""
    if words[:2] == ["python", "-m"] and re.match("(scripts|benchmarks)", words[2]):
        return REPOSITORY / f"{words[2].replace('.', '/')}.py"
    paths = [word for word in words[:2] if re.match("(scripts|benchmarks)/", word)]
    return REPOSITORY / paths[0] if paths else None


SCRIPTS = [words for words in commands() if script_of(words)]


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: " ".join(words)[:60])
def test_scripts_know_their_options(words: list[str]) -> None:
    script = script_of(words)
    assert script is not None and script.exists()
    known = "".join(path.read_text() for path in script.parent.iterdir() if path.suffix in (".py", ".sh"))
    for option in (word for word in words if word.startswith("--")):
        assert option in known


TOOLS = [words[words.index(PROGRAM) + 1 :] for words in commands() if PROGRAM in words]


@pytest.mark.parametrize("words", TOOLS, ids=lambda words: " ".join(words)[:60])
def test_the_command_understands_its_words(words: list[str]) -> None:
    """Up to the words that a shell takes for itself."""
    end = next((i for i, word in enumerate(words) if word in ("|", "<", ">", ";")), len(words))
    make_parser().parse_args(words[:end])
