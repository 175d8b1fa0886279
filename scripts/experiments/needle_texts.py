"""Texts that teach a small model to retrieve needles: facts among other sentences, each stated several times.

    python -m scripts.experiments.needle_texts data/needles

writes train.jsonl and valid.jsonl for --task pretraining. The facts are needles of ``torchscale-fairseq needle`` with a
word of VALUES, and the other sentences its haystack. docs/evaluation.md trains a model on them.
"""

import argparse
import json
import random
from pathlib import Path

from torchscale_fairseq.evaluation.needles import HAYSTACK, KEYS, NEEDLE

VALUES = [
    "amber",
    "blue",
    "coral",
    "denim",
    "ebony",
    "fawn",
    "green",
    "hazel",
    "ivory",
    "jade",
    "khaki",
    "lilac",
    "mauve",
    "navy",
    "olive",
    "pink",
]
FACTS, SENTENCES = (1, 4), (4, 24)
"""Fewest and most of a text."""


def text(rng: random.Random) -> str:
    """A text in which each second sentence or so states one of its facts, for the first time or again."""
    keys = rng.sample(KEYS, rng.randint(*FACTS))
    facts = [NEEDLE.format(key=key, value=rng.choice(VALUES)) for key in keys]
    return " ".join(rng.choice(rng.choice((facts, HAYSTACK))) for _ in range(rng.randint(*SENTENCES)))


def write(folder: Path, sizes: dict[str, int]) -> None:
    """Write JSON lines for each split, ``sizes[split]`` texts each."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        rng = random.Random(split)
        lines = (json.dumps({"text": text(rng)}) + "\n" for _ in range(size))
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="for train.jsonl and valid.jsonl")
    write(parser.parse_args().folder, {"train": 20_000, "valid": 200})
