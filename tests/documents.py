"""Code blocks of the documents."""

from dataclasses import dataclass
from pathlib import Path

from tests.fairseq_cli import REPOSITORY

DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
JOBS: tuple[str, ...] = (
    "translation",
    "language_models",
    "retnet",
    "longnet",
    "bitnet",
    "experts",
    "masked_models",
    "images_and_text",
)
JOBS += ("large_images", "pretraining", "launching", "hydra", "checkpoints", "generation")
RUNNABLE = [*(REPOSITORY / "docs" / f"{name}.md" for name in JOBS), REPOSITORY / "README.md"]
"""The documents whose commands run one after another; earlier ones make data and models for later ones."""
PLACEHOLDERS = ("DATA", " IN ", "...", "…")
"""Words in a command that stand for the reader's own; such a command cannot run."""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    """Of its opening fence, counted from 1."""


def code_blocks(document: Path) -> list[Block]:
    """Fenced blocks in order; a fence that is opened within a block, or never closed, fails the test."""
    blocks = []
    opened: tuple[str, int] | None = None
    inside: list[str] = []
    for number, line in enumerate(document.read_text().splitlines(), start=1):
        if not line.startswith("```"):
            inside.append(line)
        elif opened is None:
            opened, inside = (line.strip("`"), number), []
        else:
            assert line == "```", f"{document.name}:{number}: {line} stands in the block opened in line {opened[1]}"
            blocks.append(Block(opened[0], "\n".join(inside), opened[1]))
            opened = None
    assert opened is None, f"{document.name}: the block opened in line {opened[1]} is not closed"
    return blocks
