"""Reading conversations from JSON lines: ``{"prompt": ..., "completion": ...}`` or ``{"messages": [...]}``."""

import json
from pathlib import Path
from typing import Any

from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.formats.compression import COMPRESSIONS
from torchscale_fairseq.data.text.formats.lines import numbered_lines

Message = dict[str, Any]
"""A turn of a conversation: ``role`` (system, user, assistant) and ``content``."""
ANSWERS = "assistant"
"""The role whose messages a model learns."""
FORMS = '"prompt" and "completion", or "messages", a list of objects with "role" and "content"'

SUFFIX = ".jsonl"
ADVICE = "; each subset is a file of JSON lines in the data directory, such as train.jsonl"
PROMPTS = '"prompt", or "messages", a list of objects with "role" and "content"'


def read_conversations(path: Path, problems: Problems) -> list[list[Message]]:
    """The conversations of a file, a line each; empty lines are left out.

    Args:
        path: of the file, which is decompressed if its name ends in .gz or .zst.
        problems: takes lines that hold no conversation with an answer.

    Raises:
        DataError: the file cannot be read, or a line holds no conversation.
    """
    found = []
    for line in numbered_lines(str(path), ADVICE):
        where = f"{path}, line {line.number}"
        with problems.kind("invalid lines"):
            if line.reason is not None:
                raise DataError(f"{where}: {line.reason}.")
            if line.text.strip():
                found.append(_with_answer(conversation_of(line.text, where), where))
    return found


def conversations_file(folder: Path, split: str) -> Path:
    """The file of a split: SPLIT.jsonl, or that compressed with gzip or zstd; SPLIT.jsonl if there is none."""
    paths = [folder / f"{split}{SUFFIX}{compression}" for compression in ("", *COMPRESSIONS)]
    return next((path for path in paths if path.exists()), paths[0])


def conversation_of(line: str | bytes, where: str, forms: str = FORMS) -> list[Message]:
    """The messages of a line.

    Args:
        line: of JSON.
        where: file and line, for the error.
        forms: the fields that a line may have, for the error: ``FORMS``, or ``PROMPTS`` for what a model answers.

    Raises:
        DataError: it is no JSON, or no conversation.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} is {type(record).__name__}, not an object with {forms}.")
    if "messages" in record:
        return _checked(record["messages"], where)
    if "prompt" not in record:
        raise DataError(f"{where} has the fields {', '.join(record) or '(none)'}; give {forms}.")
    answer = [{"role": ANSWERS, "content": record["completion"]}] if "completion" in record else []
    return _checked([{"role": "user", "content": record["prompt"]}, *answer], where)


def _checked(messages: Any, where: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages must be a list of at least one object with role and content.")
    for place, message in enumerate(messages, start=1):
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: message {place} has no role and content that are strings.")
    return messages


def _with_answer(messages: list[Message], where: str) -> list[Message]:
    if not any(message["role"] == ANSWERS for message in messages):
        raise DataError(f"{where} has no answer to learn; give {FORMS}, one of them with the role {ANSWERS}.")
    return messages
