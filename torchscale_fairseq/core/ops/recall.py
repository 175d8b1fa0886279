"""Recall at k of retrieval in both directions, with scores in blocks, so that no matrix of all scores is needed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 4096
"""Queries, and candidates, whose scores are in memory at once."""


def recalls(
    images: Any, texts: Any, image_of_text: Tensor, *, at: Sequence[int] = (1, 5, 10), block: int = BLOCK
) -> dict[str, float]:
    """The shares of texts whose image, and of images with a text that, is among the k nearest.

    Args:
        images: (images, width), tensor or NumPy array, which may be mapped from a file.
        texts: (texts, width), likewise.
        image_of_text: (texts,), the index of each text's image.
        at: values of k.
        block: rows that are read at once.

    Returns:
        In percent, by names such as text_to_image_r1 and image_to_text_r5.
    """
    own = torch.arange(len(images))
    to_images = ranks(texts, images, image_of_text, own, block=block)
    to_texts = ranks(images, texts, own, image_of_text, block=block)
    return {
        f"{name}_r{k}": 100.0 * float((found < k).double().mean())
        for name, found in (("text_to_image", to_images), ("image_to_text", to_texts))
        for k in at
    }


def ranks(queries: Any, candidates: Any, wanted: Tensor, given: Tensor, *, block: int = BLOCK) -> Tensor:
    """How many wrong candidates score at least as high as the best right one.

    Args:
        queries, candidates: (queries, width) and (candidates, width), tensors or arrays.
        wanted: (queries,), what each query looks for.
        given: (candidates,), what each candidate is; those equal to ``wanted`` are right.
        block: rows that are read at once.

    Returns:
        (queries,), 0 for a query whose best candidate is right; the number of candidates where none is.
    """
    found = []
    for start in range(0, len(queries), block):
        own, looks_for = _rows(queries, start, block), wanted[start : start + block]
        best = torch.full((len(own),), -torch.inf, dtype=own.dtype)
        for scores, right in _scores(own, looks_for, candidates, given, block):
            best = torch.maximum(best, scores.masked_fill(~right, -torch.inf).amax(1))
        ahead = torch.zeros(len(own), dtype=torch.long)
        for scores, right in _scores(own, looks_for, candidates, given, block):
            ahead += ((scores >= best[:, None]) & ~right).sum(1)
        found.append(ahead)
    return torch.cat(found)


def _scores(queries: Tensor, wanted: Tensor, candidates: Any, given: Tensor, block: int) -> Any:
    for start in range(0, len(candidates), block):
        right = wanted[:, None] == given[None, start : start + block]
        yield queries @ _rows(candidates, start, block).T, right


def _rows(table: Any, start: int, count: int) -> Tensor:
    """In float32: half precision would make equal scores of different ones."""
    return torch.as_tensor(table[start : start + count]).float()
