"""Conversations as text: by the chat template of a tokenizer, or message by message."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torchscale_fairseq.data.instructions.conversations import ANSWERS, Message
from torchscale_fairseq.data.problems import DataError

PLAIN = "plain"
"""In place of a file with a chat template: none."""
FILES = ("tokenizer_config.json", "chat_template.jinja")
"""Files with a chat template, looked for in a data directory."""


class Segment(NamedTuple):
    """A stretch of a conversation's text, tokenized by itself."""

    text: str
    is_answer: bool
    """The model learns it."""
    ends: bool
    """</s> follows."""


class Chat(Protocol):
    """A way to write conversations."""

    end: str | None
    """Text that stands for </s>; None for none."""

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The text up to the last answer."""

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """The text of all messages, after which the model answers."""


class PlainChat:
    """Each message is written like a line of text in pretraining: its content, and </s>."""

    end: str | None = None

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The text up to the last answer."""
        last = max(place for place, message in enumerate(messages) if message["role"] == ANSWERS)
        return self.prompt(messages[: last + 1])

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """The text of all messages, after which the model answers."""
        return [Segment(message["content"], message["role"] == ANSWERS, ends=True) for message in messages]


class TemplateChat:
    """A Jinja template in the form of Hugging Face's ``tokenizer.chat_template``.

    Args:
        template: the template.
        special: texts of ``bos_token`` and ``eos_token``, which the template may use. The first is left out of the
            result, as every sample begins with </s>; the second stands for </s>.
        path: of its file, for errors.

    Raises:
        DataError: it is no Jinja template.
    """

    def __init__(self, template: str, special: Mapping[str, str], path: Path):
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        self._special, self._path = dict(special), path
        self.end = special.get("eos_token") or None
        self._errors = (jinja2.TemplateError, TypeError)
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise DataError(f"{path} holds no chat template: {error}.") from None

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The text up to the last answer."""
        return self._turns(messages)[0]

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """The text of all messages, after which the model answers."""
        segments, done = self._turns(messages)
        return [*segments, Segment(self._after(done, messages, to_answer=True), is_answer=False, ends=False)]

    def _turns(self, messages: Sequence[Message]) -> tuple[list[Segment], str]:
        """The segments up to the last answer, and their text."""
        segments: list[Segment] = []
        done = ""
        for place, message in enumerate(messages):
            if message["role"] == ANSWERS:
                question = self._after(done, messages[:place], to_answer=True)
                done += question
                answer = self._after(done, messages[: place + 1], to_answer=False)
                done += answer
                ends = self.end is None or not answer.rstrip().endswith(self.end)
                segments += [Segment(question, is_answer=False, ends=False), Segment(answer, is_answer=True, ends=ends)]
        return segments, done

    def _after(self, done: str, messages: Sequence[Message], *, to_answer: bool) -> str:
        """The text that the template adds to its text of fewer messages."""
        try:
            text = self._template.render(
                messages=list(messages), add_generation_prompt=to_answer, **{"bos_token": "", **self._special}
            )
        except self._errors as error:
            raise DataError(f"{self._path}: the chat template cannot write a conversation: {error}.") from None
        bos = self._special.get("bos_token", "")
        text = text.removeprefix(bos) if bos else text
        if not text.startswith(done):
            raise DataError(
                f"{self._path}: the chat template writes the beginning of a conversation in another way when more "
                "messages follow, so that answers cannot be told apart; give --chat-template with another file, or "
                f"--chat-template {PLAIN}."
            )
        return text[len(done) :]


def chat_of(given: str, data: Path) -> Chat:
    """The chat of --chat-template.

    Args:
        given: the option: a file, ``PLAIN``, or empty for the first of ``FILES`` that the data directory has.
        data: the directory.

    Raises:
        DataError: the file cannot be read, or holds no chat template.
    """
    if given == PLAIN:
        return PlainChat()
    if given:
        chat = _read(Path(given))
        if chat is None:
            raise DataError(f"--chat-template: {given} has no entry chat_template; give another file, or {PLAIN}.")
        return chat
    found = (_read(data / name) for name in FILES if (data / name).exists())
    return next((chat for chat in found if chat is not None), PlainChat())


def _read(path: Path) -> TemplateChat | None:
    """The template in a file of Jinja, or of JSON, which may have none."""
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if path.suffix == ".json" else {"chat_template": text}
    except (OSError, ValueError) as error:
        raise DataError(f"--chat-template: {path} cannot be read: {error}.") from None
    template = content.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if template is None:
        return None
    special = {name: _text_of(content.get(name)) for name in ("bos_token", "eos_token")}
    return TemplateChat(template, {name: text for name, text in special.items() if text}, path)


def _text_of(token: Any) -> str:
    """A special token, which is its text or an object with it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _refuse(message: str) -> None:
    raise TypeError(message)
