"""Scores of captions: CIDEr and BLEU by pycocoevalcap, if it is installed, and exact matches."""

import importlib.util
import logging
import re
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

Captions = Sequence[tuple[Any, str]]
"""Images, by any name, and captions."""


def score_captions(written: Captions, references: Captions) -> dict[str, float]:
    """Compare captions with their images' references.

    Words are lower-cased runs of letters and digits, where COCO's own evaluation runs a Java program for that.

    Args:
        written: captions; of several for an image, the first counts.
        references: any number for an image.

    Returns:
        exact_match; and bleu_1 to bleu_4 and cider if pycocoevalcap is installed. All in percent.
    """
    found: dict[Any, list[str]] = {}
    for image, caption in written:
        found.setdefault(image, [_words(caption)])
    wanted: dict[Any, list[str]] = {}
    for image, caption in references:
        wanted.setdefault(image, []).append(_words(caption))
    exact = sum(captions[0] in wanted[image] for image, captions in found.items())
    return {"exact_match": 100.0 * exact / len(found), **_by_coco(wanted, found)}


def _by_coco(wanted: dict[Any, list[str]], found: dict[Any, list[str]]) -> dict[str, float]:
    if importlib.util.find_spec("pycocoevalcap") is None:
        logger.warning("no CIDEr and BLEU: pycocoevalcap is not installed; install it with pip install pycocoevalcap")
        return {}
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    bleu = Bleu(4).compute_score(wanted, found, verbose=0)[0]
    scores = {f"bleu_{order}": 100.0 * float(score) for order, score in enumerate(bleu, 1)}
    return {**scores, "cider": 100.0 * float(Cider().compute_score(wanted, found)[0])}


def _words(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.lower()))
