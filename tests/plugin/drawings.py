"""Images of coloured shapes: with captions and a tokenizer for --task image_text, in a folder per colour for --task
image_classification."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from tests.tools.in_process import run_tool

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 200, 40)}
SHAPES = ("circle", "square", "triangle", "cross")


def draw(shape: str, colour: str, rng: random.Random, size: int = 32) -> Image.Image:
    """A shape somewhere on a grey ground."""
    ground = rng.randint(90, 150)
    image = Image.new("RGB", (size, size), (ground, ground, ground))
    pen, fill = ImageDraw.Draw(image), COLOURS[colour]
    width = rng.randint(18, 26)
    x, y = rng.randint(1, size - width - 1), rng.randint(1, size - width - 1)
    box = (x, y, x + width, y + width)
    if shape == "circle":
        pen.ellipse(box, fill)
    elif shape == "square":
        pen.rectangle(box, fill)
    elif shape == "triangle":
        pen.polygon([(x, y + width), (x + width, y + width), (x + width // 2, y)], fill)
    else:
        third = width // 3
        pen.rectangle((x + third, y, x + 2 * third, y + width), fill)
        pen.rectangle((x, y + third, x + width, y + 2 * third), fill)
    return image


def make_drawings(folder: Path, **splits: int) -> Path:
    """So many pairs in each split, and dict.txt and sentencepiece.bpe.model beside them, in which a word is a piece."""
    rng = random.Random(1)
    (folder / "images").mkdir(parents=True)
    for split, count in splits.items():
        lines = []
        for number in range(count):
            shape, colour = rng.choice(SHAPES), rng.choice(sorted(COLOURS))
            name = f"images/{split}{number}.png"
            draw(shape, colour, rng).save(folder / name)
            lines.append(json.dumps({"image": name, "caption": f"a {colour} {shape}"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    words = ["data", "train-tokenizer", folder / "train.jsonl", "--output", folder, "--model-type", "bpe"]
    run_tool(*words, "--vocab-size", "320").check()
    return folder


def make_folders(folder: Path, **splits: int) -> Path:
    """So many images of each colour in each split."""
    rng = random.Random(1)
    for split, count in splits.items():
        for colour in COLOURS:
            (folder / split / colour).mkdir(parents=True)
            for number in range(count):
                draw(rng.choice(SHAPES), colour, rng).save(folder / split / colour / f"{number}.png")
    return folder
