"""Write a corpus of English prose from the standard library of the Python that runs it.

A document is a topic of Python's own help (pydoc_data.topics), or a source file of the standard library without its
tests: its docstrings, and its comments of two lines or more. A paragraph becomes a line. Only the first of equal
paragraphs is kept, so that no split repeats a line of another; doctests (>>>) are left out. The corpus depends only on
the version of Python, if that is installed in full.
"""

import argparse
import ast
import inspect
import io
import random
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.tools.data.splits import SPLITS
from torchscale_fairseq.tools.progress import progress

EXAMPLE = "torchscale-fairseq data python-corpus data/python"
Documents = dict[str, list[str]]
"""The paragraphs of each document, by its name."""

SHARE = 0.05
"""Share of the text that each of valid and test gets."""
MINIMUM_BYTES = 2_000_000
NOT_THE_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="new directory for {train,valid,test}.txt")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="decides the split of each document (default: 1)"
    )


def run(options: argparse.Namespace) -> None:
    with make_directory_atomically(options.directory) as made:
        library = Path(sysconfig.get_path("stdlib"))
        corpus = without_repetition({**help_topics(), **source_files(library)})
        check_size(corpus, library)
        write_splits(split_documents(corpus, options.seed), made)
    print(f"wrote {size(corpus):,} bytes of {len(corpus)} documents to {options.directory}")


def help_topics() -> Documents:
    from pydoc_data.topics import topics

    return {f"help {name}": paragraphs(text) for name, text in sorted(topics.items())}


def source_files(library: Path) -> Documents:
    documents = {}
    for path in progress(sorted(library.rglob("*.py")), "reading", "file"):
        name = path.relative_to(library)
        if NOT_THE_LIBRARY.isdisjoint(name.parts):
            source = path.read_bytes()
            texts = [*docstrings(source), *comments(source)]
            documents[name.as_posix()] = [paragraph for text in texts for paragraph in paragraphs(text)]
    return documents


def docstrings(source: bytes) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences in the library's own strings
        tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for text in map(ast.get_docstring, nodes) if text]


def comments(source: bytes) -> Iterator[str]:
    """Yields each comment that fills two lines or more by itself."""
    block: list[str] = []
    last_line = 0
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        line = token.start[0]
        if line > last_line + 1:
            if len(block) > 1:
                yield "\n".join(block)
            block = []
        block.append(token.string.lstrip("#"))
        last_line = line
    if len(block) > 1:
        yield "\n".join(block)


def paragraphs(text: str) -> list[str]:
    """Splits a text at its empty lines and rulers; drops doctests and what has no word."""
    blocks = re.split(r"\n(?:\s*[-=*~#_+.]*\s*\n)+", inspect.cleandoc(text))
    lines = [" ".join(block.split()) for block in blocks]
    return [line for line in lines if re.search(r"[A-Za-z]{2}", line) and not line.startswith(">>>")]


def without_repetition(documents: Documents) -> Documents:
    """Drops every paragraph that an earlier one equals, and documents left without any."""
    seen: set[str] = set()
    kept: Documents = {}
    for name, text in documents.items():
        new = [paragraph for paragraph in dict.fromkeys(text) if paragraph not in seen]
        seen.update(new)
        if new:
            kept[name] = new
    return kept


def size(documents: Documents) -> int:
    """Returns the bytes of the documents as files hold them, line ends included."""
    return sum(len(paragraph.encode()) + 1 for text in documents.values() for paragraph in text)


def check_size(corpus: Documents, library: Path) -> None:
    if size(corpus) < MINIMUM_BYTES:
        raise InputError(
            f"the standard library in {library} has {size(corpus):,} bytes of text in {len(corpus)} documents, but a "
            f"language model needs {MINIMUM_BYTES:,}; this Python is installed without its source files or in part "
            "(Debian: apt-get install libpython3-stdlib), take another one"
        )


def split_documents(corpus: Documents, seed: int) -> dict[str, Documents]:
    """Draws documents for test, then valid, until each has its share; the rest, shuffled, is train."""
    names = sorted(corpus)
    random.Random(seed).shuffle(names)
    wanted = SHARE * size(corpus)
    splits: dict[str, Documents] = {split: {} for split in SPLITS}
    for name in names:
        split = next((held for held in ("test", "valid") if size(splits[held]) < wanted), "train")
        splits[split][name] = corpus[name]
    return splits


def write_splits(splits: dict[str, Documents], directory: Path) -> None:
    for split, documents in splits.items():
        content = "".join(f"{paragraph}\n" for text in documents.values() for paragraph in text)
        (directory / f"{split}.txt").write_text(content, encoding="utf-8")
