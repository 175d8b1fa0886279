"""--pack-documents: where batches say that documents begin."""

from itertools import accumulate, chain
from pathlib import Path

import pytest
from torch import Tensor

from tests.data.corpora import opened, slow_documents
from torchscale_fairseq.data.text.masking import Masking

BOS, PAD, EOS = 0, 1, 2
MASKING = Masking(0.3, 1.0, 1.0, 0.0, mask=4, replacements=(4, 381))
"""What is to be predicted stays as it is."""


def parts(marked: Tensor, tokens: Tensor) -> list[list[int]]:
    """The tokens from each marked one to the next, row by row, but for padding."""
    found: list[list[int]] = []
    for row, starts in zip(tokens, marked, strict=True):
        found += [part.tolist() for part in row.tensor_split(starts.nonzero().flatten())]
    return [part for part in found if part and part[0] != PAD]


def offsets(lists: list[list[int]]) -> set[int]:
    """Where each list begins in all of them together."""
    return set(accumulate((len(part) for part in lists[:-1]), initial=0))


@pytest.mark.parametrize("break_mode", ["none", "complete"])
@pytest.mark.parametrize("masking", [None, MASKING], ids=["causal", "masked"])
def test_documents_begin_where_empty_lines_end(break_mode: str, masking: Masking | None, corpus_folder: Path) -> None:
    """A row begins a document, too, of which an earlier row may hold the beginning."""
    dataset = opened(corpus_folder, break_mode=break_mode, seed=None, masking=masking, packed=True)
    batch, documents = dataset.batch(0, 0, len(dataset)), slow_documents(corpus_folder)
    starts, source = batch["net_input"]["document_starts"], batch["net_input"]["src_tokens"]
    assert source.size(1) <= 31 + (masking is not None)
    assert {part[0] for part in parts(starts, source)} == {EOS if masking is None else BOS}
    tokens = batch["target"] if masking is None else source
    found = parts(starts, tokens)
    rows = [row[row != PAD].tolist() for row in tokens]
    if masking is not None:
        found, rows = ([[token for token in part if token != BOS] for part in lists] for lists in (found, rows))
    assert list(chain(*found)) == list(chain(*documents))
    assert offsets(found) == offsets(rows) | offsets(documents)


def test_padding_begins_a_document(corpus_folder: Path) -> None:
    batch = opened(corpus_folder, break_mode="complete", packed=True).batch(0, 0, 40)["net_input"]
    padding = batch["src_tokens"] == PAD
    first = padding & ~padding.roll(1, 1)
    assert first.any() and batch["document_starts"][first].all()
