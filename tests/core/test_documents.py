"""The documents' fences close, their links lead somewhere, and the Python of README.md and docs/core.md runs."""

import re
import subprocess
from pathlib import Path

import pytest

import torchscale_fairseq
from tests.core.standalone import NOTHING_DRAWN, run
from tests.documents import DOCUMENTS, code_blocks
from tests.fairseq_cli import REPOSITORY

README = REPOSITORY / "README.md"
CORE = REPOSITORY / "docs/core.md"


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
    """The Python of docs/core.md and README.md runs without fairseq, block after block, but for loading files."""
    snippets = [block.text for page in (CORE, README) for block in code_blocks(page) if block.language == "python"]
    core = [text for text in snippets if "_pretrained" not in text]
    assert len(core) >= 5
    run("\n".join(core), NOTHING_DRAWN)


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_every_page_is_in_the_index_and_on_the_site() -> None:
    docs = REPOSITORY / "docs"
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    listed = set(re.findall(r"\]\(([^)#]+\.md)\)", (docs / "index.md").read_text()))
    assert pages - listed - {"index.md"} == {page for page in pages if page.startswith("api/")} - {"api/index.md"}
    navigation = set(re.findall(r"(\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert navigation == pages


def test_every_public_name_has_a_place_in_the_api() -> None:
    pages = "".join(page.read_text() for page in (REPOSITORY / "docs/api").glob("*.md"))
    assert set(re.findall(r"^::: torchscale_fairseq\.(\w+)$", pages, flags=re.MULTILINE)) == set(
        torchscale_fairseq.__all__
    )


def test_the_changelog_has_the_release_of_this_version() -> None:
    """Its sections are, newest first, Unreleased and the releases with their dates; the newest release is ours."""
    sections = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert re.fullmatch(re.escape(torchscale_fairseq.__version__) + r" - \d{4}-\d{2}-\d{2}", sections[1])


def test_paths_that_contributors_are_sent_to_exist() -> None:
    """A path begins in the repository, in the package, or in the folder of a path before it in its row."""
    for row in (REPOSITORY / "CONTRIBUTING.md").read_text().splitlines():
        folders = [REPOSITORY, REPOSITORY / "torchscale_fairseq"]
        for path in re.findall(r"`([\w./-]*(?:/|\.(?:py|md|tsv|txt))[\w./-]*)`", row):
            found = [folder / path for folder in folders if (folder / path).exists()]
            assert found, f"{path} in: {row}"
            folders += [place if place.is_dir() else place.parent for place in found]
