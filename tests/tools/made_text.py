"""Small text of made-up words for commands that prepare, train and evaluate."""

import random
from pathlib import Path


def write_texts(folder: Path, generator: random.Random, size: int = 1) -> None:
    """Write {train,valid,test}.{en,de,txt} of 150, 20 and 20 lines, or ``size`` times as many; German is
    English backwards.

    Args:
        folder: a new directory.
        generator: draws the words.
        size: of the text and its vocabulary.
    """
    words = [
        "".join(generator.choices("abcdefghijklmnoprstuvwz", k=generator.randint(2, 7))) for _ in range(300 * size)
    ]
    folder.mkdir()
    for split, count in (("train", 150), ("valid", 20), ("test", 20)):
        lines = [" ".join(generator.choices(words, k=generator.randint(3, 9))) for _ in range(count * size)]
        for name, content in (("en", lines), ("de", [line[::-1] for line in lines]), ("txt", lines)):
            (folder / f"{split}.{name}").write_text("\n".join(content) + "\n")
