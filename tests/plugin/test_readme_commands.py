"""README.md's commands are understood: fairseq's parsers take every option, and scripts know theirs."""

import re
import shlex

import pytest

from tests.documents import code_blocks
from tests.fairseq_cli import REPOSITORY, run_beside_fairseq

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
    """Words of every command in the README's bash blocks."""
    text = "\n".join(block.text for block in code_blocks(REPOSITORY / "README.md") if block.language == "bash")
    lines = text.replace("\\\n", " ").splitlines()
    return [part for line in lines if (words := shlex.split(line, comments=True)) for part in _parts(words)]


def _parts(words: list[str]) -> list[list[str]]:
    """A launcher, and the command that it is given."""
    if words[0] != "scripts/launch/local.sh":
        return [words]
    start = next(i for i, word in enumerate(words) if word.startswith("fairseq-"))
    return [words[:start], words[start:]]


def test_fairseq_understands_its_commands() -> None:
    ours = [words for words in commands() if re.match("fairseq-(?!hydra)", words[0])]
    assert len(ours) > 12
    run_beside_fairseq(PARSE.format(commands=ours), plugin=True).check()


SCRIPTS = [words for words in commands() if any(word.startswith("scripts/") for word in words[:2])]


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: " ".join(words)[:60])
def test_scripts_know_their_options(words: list[str]) -> None:
    script = next(REPOSITORY / word for word in words if word.startswith("scripts/"))
    assert script.exists()
    known = "".join(path.read_text() for path in script.parent.iterdir() if path.suffix in (".py", ".sh"))
    for option in (word for word in words if word.startswith("--")):
        assert option in known
