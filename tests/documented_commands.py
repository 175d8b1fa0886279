"""The commands of the documents, made tiny: small models, few updates, on a CPU."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.documents import PLACEHOLDERS, code_blocks
from tests.fairseq_cli import ENVIRONMENT, Finished, run_fairseq, run_program
from tests.plugin.shrunk import shrunk

NOT_HERE = ("scripts/quickstart", "scripts/test.sh", "scripts/setup.sh", "source ", "pip install", "sbatch ")
"""Commands that have tests of their own, install something or need a cluster."""
UPDATES = 12
HALF = ("--fp16", "--bf16", "--compile")
AT_MOST = {
    "--update-freq": 1,
    "--warmup-updates": 1,
    "--total-num-update": UPDATES,
    "--max-update": UPDATES,
    "--vocab-size": 350,
    "--train": 24,
    "--valid": 8,
    "--num-workers": 0,
    "--img-size": 64,
}
"""Largest numbers of options; larger ones in the documents are replaced."""
BIN = Path(sys.executable).parent
SHELL_SYNTAX = re.compile(r"^for |\|")


@dataclass(frozen=True)
class Command:
    """One command of a document."""

    text: str
    where: str


def commands(document: Path) -> list[Command]:
    """Those of its bash blocks, loops and pipes whole, without the ones that cannot run here."""
    found = []
    for block in code_blocks(document):
        if block.language == "bash":
            texts = [text for text in _joined(block.text).splitlines() if text.strip()]
            where = f"{document.name}:{block.line}"
            found += [Command(text, where) for text in texts if not text.startswith(NOT_HERE)]
    return [command for command in found if not any(word in command.text for word in PLACEHOLDERS)]


def _joined(block: str) -> str:
    """A command a line."""
    lines = re.sub(r"\\\n\s*", "", block)
    lines = re.sub(r"\|\n\s*", "| ", lines)
    return re.sub(r"(?ms)^for [^\n]*; do\n.*?^done", lambda m: m[0].replace(" do\n", " do ").replace("\n", "; "), lines)


def run(command: str, folder: Path) -> Finished:
    """Run a command of a document in a folder, made tiny."""
    if SHELL_SYNTAX.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", command)):
        return run_program(["bash", "-c", command], cwd=folder)
    words = tiny(_expanded(command, folder))
    if words[0].startswith("fairseq-"):
        name = words[0].removeprefix("fairseq-").replace("-", "_")
        return run_fairseq(name, words[1:], plugin=False, cwd=folder, stdin="a text\n", timeout=600)
    return run_program(words, cwd=folder, timeout=600)


def _expanded(text: str, folder: Path) -> list[str]:
    """The words that bash makes of a command."""
    environment = {**os.environ, **ENVIRONMENT, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", "-c", f"printf '%s\\0' {text}"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder, env=environment).stdout
    return printed.split("\0")[:-1]


def tiny(words: list[str]) -> list[str]:
    """The command with small numbers; a launcher's own command too."""
    start = next((i for i, word in enumerate(words) if word.startswith("fairseq-")), len(words))
    return _smaller(words[:start]) + (_tiny_fairseq(words[start:]) if start < len(words) else [])


def _tiny_fairseq(words: list[str]) -> list[str]:
    name = words[0].removeprefix("fairseq-")
    if name == "preprocess":
        return words
    if name == "hydra-train":
        flags = shrunk(words[words.index("--config-name") + 1])[2:]
        keys = [
            f"++model.{flag[2:].replace('-', '_')}={value}" for flag, value in zip(flags[::2], flags[1::2], strict=True)
        ]
        return [*words, *keys, "common.cpu=true", f"optimization.max_update={UPDATES}", "dataset.num_workers=0"]
    words = [word for word in _smaller(words) if word not in HALF]
    words = words if "--cpu" in words else [*words, "--cpu"]
    if name != "train":
        return words
    small = shrunk(words[words.index("--arch") + 1])[2:]
    return [*words, *small, "--max-update", str(UPDATES), "--num-workers", "0"]


def _smaller(words: list[str]) -> list[str]:
    options = ["", *words][: len(words)]
    return [
        str(min(int(word), AT_MOST[option])) if option in AT_MOST and word.isdigit() else word
        for word, option in zip(words, options, strict=True)
    ]
