"""The prose of documents, docstrings and messages: words that readers stumble over, and docstrings that need another.

An editor shows a docstring by itself, so none begins with "What ..." for a noun, or leans on the one before it.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, code_blocks
from tests.fairseq_cli import REPOSITORY

INSTEAD = {
    r"lest": "so that ... not",
    r"shar(e|es|ed|ing) out": "distribute, split",
    r"beside": "next to, in addition to, compared with",
    r"unless told( otherwise)?": "by default, unless OPTION is set",
    r"so many": "N, this many",
    r"in the place of": "instead of",
}
"""Words, and better ones."""
LEANING = re.compile(r"(What|The same|As for|As in|Likewise|Of)\b")
SOURCES = sorted(
    path for folder in ("torchscale_fairseq", "scripts", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
)


def unwelcome(text: str) -> list[str]:
    """The unwelcome words of a text, with better ones."""
    flat = " ".join(text.split())
    return [
        f"{word!r} ({better}): ...{flat[max(0, m.start() - 40) : m.end() + 40]}..."
        for word, better in INSTEAD.items()
        for m in re.finditer(rf"\b{word}\b", flat, re.IGNORECASE)
    ]


def prose_of(document: Path) -> str:
    """The text of a document without its code."""
    text = document.read_text()
    for block in code_blocks(document):
        text = text.replace(block.text, "")
    return re.sub(r"`[^`]*`", "", text)


def docstrings(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and text of each string that is a statement."""
    return [
        (node.lineno, node.value.value.strip())
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def sentences(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and text of each string of several words: docstrings, help texts, messages."""
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 1
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_documents(document: Path) -> None:
    assert not unwelcome(prose_of(document))


def test_docstrings_help_texts_and_messages() -> None:
    found = []
    for source in SOURCES:
        tree, name = ast.parse(source.read_text()), source.relative_to(REPOSITORY)
        found += [f"{name}:{line}: {text}" for line, words in sentences(tree) for text in unwelcome(words)]
    assert not found, "\n".join(found)


def test_docstrings_stand_alone() -> None:
    found = []
    for source in (path for path in SOURCES if "torchscale_fairseq" in path.parts):
        name = source.relative_to(REPOSITORY)
        begin = [(line, text) for line, text in docstrings(ast.parse(source.read_text())) if LEANING.match(text)]
        found += [f"{name}:{line}: {text[:80]}" for line, text in begin]
    assert not found, "\n".join(found)


def test_unwelcome_words_are_found() -> None:
    assert unwelcome("Experts are shared out, lest one\nprocess holds all.")
    assert not unwelcome("Besides, the shares are out of date.")
    assert LEANING.match("What a layer keeps.") and not LEANING.match("Official names.")
