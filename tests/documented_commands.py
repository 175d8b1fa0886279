"""The commands of the documents, made tiny (small models, few updates, a CPU), and run in a new environment."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.documents import PLACEHOLDERS, code_blocks
from tests.fairseq_cli import ENVIRONMENT, REPOSITORY, Finished
from tests.plugin.shrunk import shrunk

NOT_HERE = ("scripts/test.sh", "scripts/setup.sh", "scripts/gpu.sh", "source ", "make ", "pytest ")
"""Commands that set up, as a checkout has done already, or test everything."""
ADDRESS = "://"
"""In a line that needs more of the network than a package index."""
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
    "--min-block-patches": 4,
    "--nproc-per-node": 2,
    "--processes": 2,
    "--gpus": 0,
}
"""Largest numbers of options; larger ones in the documents are replaced."""
QUICK_START = re.compile(r"scripts/(quickstart\w*|experiments/\w+)\.sh")
EXPERIMENT = re.compile(r"scripts[./]experiments[./](\w+)")
SHORTER = {"xmoe_domains": ["--max-update", str(UPDATES), "--", "--warmup-updates", "1"]}
"""Options of experiments that have no --small."""
PRESETS = {"quickstart": "mt_deepnorm_small", "quickstart_lm": "gpt_deepnorm_small"}
"""The architecture that a quick start trains unless --arch names another."""
SHELL_SYNTAX = re.compile(r"^for |[|<>]")
STDIN = "a text\n"


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
            where = f"{document.relative_to(REPOSITORY)}:{block.line}"
            found += [Command(text, where) for text in texts if not text.startswith(NOT_HERE)]
    return [command for command in found if command.text.startswith("sbatch ") or not _has_placeholder(command.text)]


def _has_placeholder(text: str) -> bool:
    return any(word in text for word in (*PLACEHOLDERS, ADDRESS))


def _joined(block: str) -> str:
    """A command a line."""
    lines = re.sub(r"\\\n\s*", "", block)
    lines = re.sub(r"\|\n\s*", "| ", lines)
    return re.sub(r"(?ms)^for [^\n]*; do\n.*?^done", lambda m: m[0].replace(" do\n", " do ").replace("\n", "; "), lines)


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository's files with an environment of its own, as a new user has them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Checkout":
        """Copy the files that git knows, and run scripts/setup.sh there without pip's cache."""
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
        checkout = cls(folder)
        checkout.run(["scripts/setup.sh"]).check()
        return checkout

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a new shell in which the checkout's environment is active, and no other."""
        ours = {"PYTHONPATH", "VENV", "VIRTUAL_ENV", "PYTHON"}
        path = [entry for entry in os.environ["PATH"].split(os.pathsep) if Path(entry) != Path(sys.executable).parent]
        threads = {name: value for name, value in ENVIRONMENT.items() if name not in ours}
        return {
            **{name: value for name, value in os.environ.items() if name not in ours},
            **threads,
            "PATH": os.pathsep.join([str(self.folder / ".venv/bin"), *path]),
            "PIP_NO_CACHE_DIR": "1",
        }

    def run(self, words: Sequence[str], timeout: int = 1800) -> Finished:
        """Run a program in the checkout."""
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment,
            input=STDIN,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def run_tiny(self, command: str) -> Finished:
        """Run a command of a document, made tiny."""
        if SHELL_SYNTAX.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", command)):
            return self.run(["bash", "-c", command])
        if command.startswith("sbatch "):
            command = re.sub(r"^sbatch (--\S+ )*(\S+)", r"bash \2 --dry-run", command)
        return self.run(tiny(self._expanded(command)))

    def _expanded(self, text: str) -> list[str]:
        """The words that bash makes of a command."""
        return self.run(["bash", "-c", f"printf '%s\\0' {text}"]).check().stdout.split("\0")[:-1]


def tiny(words: list[str]) -> list[str]:
    """The command with small numbers; a launcher's own command too."""
    script = QUICK_START.search(words[0])
    if script:
        return _tiny_quick_start(script[1], words)
    if words[0] == "pip" and "-r" not in words:
        return ["pip", "install", "--dry-run", *words[2:]]
    if "--dry-run" in words:
        return words
    start = next((i for i, word in enumerate(words) if word.startswith("fairseq-")), len(words))
    return _tiny_program(words[:start]) + (_tiny_fairseq(words[start:]) if start < len(words) else [])


def _tiny_quick_start(name: str, words: list[str]) -> list[str]:
    words = [*words, "--max-update", str(UPDATES)]
    if name not in PRESETS:
        return words
    arch = words[words.index("--arch") + 1] if "--arch" in words else PRESETS[name]
    return [*words, "--", *shrunk(arch)[2:]]


def _tiny_program(words: list[str]) -> list[str]:
    experiment = next(filter(None, map(EXPERIMENT.search, words)), None)
    smaller = ["cpu" if word == "cuda" else word for word in _smaller(words)]
    return smaller if experiment is None else [*smaller, *SHORTER.get(experiment[1], ["--small"])]


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
