"""Reading conversations from JSON lines, Parquet and saved folders of ``datasets``.

A line or row has the fields or columns ``prompt`` and ``completion``, or ``messages``.
"""

from collections.abc import Mapping
from typing import Any

from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.formats import RECORDS, record_reader_of
from torchscale_fairseq.data.text.formats.lines import document_of
from torchscale_fairseq.data.text.sources import files_named_after

Message = dict[str, Any]
"""A turn of a conversation: ``role`` (system, user, assistant) and ``content``."""
ANSWERS = "assistant"
"""The role whose messages a model learns."""
NAMES = ("messages", "prompt", "completion")
"""Fields of JSON lines, or columns."""
FORMS = '"prompt" and "completion", or "messages", a list of objects with "role" and "content"'
PROMPTS = '"prompt", or "messages", a list of objects with "role" and "content"'


def conversation_files(folder: str, split: str) -> list[str]:
    """The files of a split: SPLIT.jsonl, SPLIT.parquet, SPLIT-00000-of-00002.parquet and so on, or those in the folder
    SPLIT.

    Args:
        folder: the data directory.
        split: such as "train".

    Raises:
        DataError: there are none, or two that differ by their compression alone.
    """
    files = files_named_after(folder, split, RECORDS)
    if not files:
        raise DataError(
            f"{folder} has no conversations for the subset '{split}'; give {split}.jsonl, {split}.parquet, or a folder "
            f"{split} of such files or that datasets saved; training without validation: --disable-validation."
        )
    return files


def read_conversations(location: str, problems: Problems) -> list[list[Message]]:
    """The conversations of a file, a line or row each; empty lines are left out.

    Args:
        location: of the file, which is decompressed if its name ends in .gz or .zst.
        problems: takes lines and rows that hold no conversation with an answer.

    Raises:
        DataError: the file cannot be read, or a line or row holds no conversation.
        ModuleNotFoundError: a package is missing; the message names the extra that has it.
    """
    reader, found = record_reader_of(location), []
    for record in reader.records(location, NAMES, f"; give {FORMS}"):
        where = f"{location}, {reader.counts} {record.number:,}"
        with problems.kind(f"invalid {reader.counts}s"):
            if record.reason is not None:
                raise DataError(f"{where}: {record.reason}.")
            found.append(_with_answer(conversation_of(record.content, where, value=reader.value), where))
    return found


def conversation_of(record: Mapping[str, Any], where: str, forms: str = FORMS, value: str = "field") -> list[Message]:
    """The messages of a record.

    Args:
        record: an object of JSON, or a row.
        where: file and line or row, for the error.
        forms: the fields that a record may have, for the error: ``FORMS``, or ``PROMPTS`` for what a model answers.
        value: field or column, for the error.

    Raises:
        DataError: it holds no conversation.
    """
    if record.get("messages") is not None:
        return _checked(record["messages"], where, f"{value} 'messages'")
    if record.get("prompt") is None:
        there = ", ".join(name for name in record if record[name] is not None) or "none"
        raise DataError(f"{where} has no {value} 'prompt' or 'messages' (there: {there}); give {forms}.")
    roles = {"prompt": "user", "completion": ANSWERS}
    for name in roles:
        if name in record:
            _check_text(record[name], where, f"{value} '{name}'")
    return [{"role": role, "content": record[name]} for name, role in roles.items() if name in record]


def _check_text(content: Any, where: str, what: str) -> None:
    reason = document_of(1, content, what).reason
    if reason is not None:
        raise DataError(f"{where}: {reason}.")


def _checked(messages: Any, where: str, what: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: {what} must be a list of at least one object with role and content.")
    for place, message in enumerate(messages, start=1):
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: {what}: message {place} has no role and content that are strings.")
        _check_text(message["content"], where, f"{what}: content of message {place}")
    return messages


def _with_answer(messages: list[Message], where: str) -> list[Message]:
    if not any(message["role"] == ANSWERS for message in messages):
        raise DataError(f"{where} has no answer to learn; give {FORMS}, one of them with the role {ANSWERS}.")
    return messages
