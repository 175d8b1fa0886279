"""The documents' fences close, their links lead somewhere, and README.md's Python runs."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.core.test_standalone import run
from tests.documents import DOCUMENTS, code_blocks
from tests.fairseq_cli import REPOSITORY

README = REPOSITORY / "README.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_fences_and_links(document: Path) -> None:
    code_blocks(document)
    for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert link.startswith("https://") or (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_parses(document: Path) -> None:
    for block in code_blocks(document):
        if block.language == "python":
            compile(block.text, f"{document.name}:{block.line}", "exec")
        if block.language == "bash":
            checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
            assert not checked.stderr, f"{document.name}:{block.line}: {checked.stderr}"


def test_the_core_alone() -> None:
    """Every Python snippet of the README but those of fairseq's models, one after another without fairseq."""
    snippets = [block.text for block in code_blocks(README) if block.language == "python"]
    core = [text for text in snippets if "torchscale_fairseq.models" not in text]
    assert len(core) >= 3
    run("\n".join(core))
