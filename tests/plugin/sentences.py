"""The sentences in which fairseq's commands end, of many commands in one process."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fairseq_cli import FEW_UPDATES, TINY_TRANSFORMER, run_beside_fairseq

SENTENCES = """
import importlib, json, sys
from torchscale_fairseq.hooks.errors.reporting import sentence_of
for command, *words in {commands!r}:
    sys.argv = ["fairseq-" + command, *words]
    try:
        importlib.import_module("fairseq_cli." + command).cli_main()
        sentence = "success"
    except Exception as error:
        sentence = sentence_of(error)
    print("SENTENCE", json.dumps(sentence))
"""


def sentences_of(commands: Sequence[Sequence[Any]]) -> list[str | None]:
    """The sentences in which commands end, each a command and its words; all run in one process."""
    done = run_beside_fairseq(
        SENTENCES.format(commands=[[*map(str, words)] for words in commands]), plugin=True
    ).check()
    lines = [line.removeprefix("SENTENCE ") for line in done.stdout.splitlines() if line.startswith("SENTENCE ")]
    return [json.loads(line) for line in lines]


def training(data: Path, folder: Path, *more: Any) -> list[Any]:
    return [data, *TINY_TRANSFORMER, *FEW_UPDATES, "--save-dir", folder, *more]
