"""Drawn scenes of two shapes, with questions, pairs and captions that neither the image nor the text decides alone."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 200, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
CELL = 16
"""Pixels of a side; a scene has two rows and two columns."""
SIZE = 2 * CELL
GREY = (120, 120, 120)


@dataclass(frozen=True)
class Thing:
    """A coloured shape in a cell of the scene."""

    colour: str
    shape: str
    row: int
    column: int

    @property
    def name(self) -> str:
        """As captions say it."""
        return f"{self.colour} {self.shape}"


Scene = tuple[Thing, Thing]
"""Two things of different colours and shapes, the left one first, or the upper one of one column."""


def draw_scene(rng: random.Random) -> Scene:
    """Two things somewhere."""
    cells = sorted(rng.sample([(column, row) for column in range(2) for row in range(2)], 2))
    colours, shapes = rng.sample(sorted(COLOURS), 2), rng.sample(SHAPES, 2)
    first, second = (
        Thing(colour, shape, row, column) for colour, shape, (column, row) in zip(colours, shapes, cells, strict=True)
    )
    return first, second


def paint(scene: Scene, rng: random.Random) -> Image.Image:
    """The picture of a scene, each thing somewhere in its cell."""
    image = Image.new("RGB", (SIZE, SIZE), GREY)
    for thing in scene:
        width = rng.randint(10, 13)
        left = thing.column * CELL + rng.randint(1, CELL - width - 1)
        top = thing.row * CELL + rng.randint(1, CELL - width - 1)
        _paint(ImageDraw.Draw(image), thing, (left, top, left + width, top + width))
    return image


def _paint(pen: Any, thing: Thing, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    fill, third = COLOURS[thing.colour], (right - left) // 3
    if thing.shape == "circle":
        pen.ellipse(box, fill)
    elif thing.shape == "square":
        pen.rectangle(box, fill)
    elif thing.shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill)
    else:
        pen.rectangle((left + third, top, right - third, bottom), fill)
        pen.rectangle((left, top + third, right, bottom - third), fill)


def caption(scene: Scene) -> str:
    """Both things, and how they lie."""
    first, second = scene
    relation = "left of" if first.column != second.column else "above"
    return f"a {first.name} {relation} a {second.name}"


def questions(rng: random.Random) -> Iterator[tuple[list[Scene], dict[str, Any]]]:
    """Scenes with a question for the colour of a shape, or for the shape of a colour."""
    while True:
        scene = draw_scene(rng)
        thing = rng.choice(scene)
        if rng.random() < 0.5:
            yield [scene], {"question": f"what colour is the {thing.shape}?", "answer": thing.colour}
        else:
            yield [scene], {"question": f"what shape is {thing.colour}?", "answer": thing.shape}


def pairs(rng: random.Random) -> Iterator[tuple[list[Scene], dict[str, Any]]]:
    """Two scenes, and whether both show a colour or a shape, as half of them do; at least one does."""
    while True:
        label, seen = rng.random() < 0.5, set[str]()
        while not seen:
            first, second = draw_scene(rng), draw_scene(rng)
            of_both = [
                {thing.colour for thing in scene} | {thing.shape for thing in scene} for scene in (first, second)
            ]
            seen = of_both[0] & of_both[1] if label else of_both[0] ^ of_both[1]
        named = rng.choice(sorted(seen))
        shown = f"something {named}" if named in COLOURS else f"a {named}"
        yield [first, second], {"sentence": f"both images show {shown}", "label": str(label)}


def captions(rng: random.Random) -> Iterator[tuple[list[Scene], dict[str, Any]]]:
    """Scenes with their captions."""
    while True:
        scene = draw_scene(rng)
        yield [scene], {"caption": caption(scene)}


KINDS: dict[str, Callable[[random.Random], Iterator[tuple[list[Scene], dict[str, Any]]]]] = {
    "visual_question_answering": questions,
    "visual_reasoning": pairs,
    "image_captioning": captions,
    "image_text_retrieval": captions,
}
"""By task."""
TEXTS = ("question", "sentence", "caption")


def write_scenes(folder: Path, task: str, *, hide: str = "", seed: int = 1, **splits: int) -> Path:
    """Write an index with its images for each split, and the texts as ``texts.txt``.

    Args:
        folder: to make.
        task: one of KINDS.
        hide: "image" for grey images, "text" for one text in every line.
        seed: of the scenes.
        splits: lines of each. Those of image_text_retrieval have different captions except in "train".
    """
    rng, texts = random.Random(seed), set()
    (folder / "images").mkdir(parents=True)
    for split, count in splits.items():
        lines: list[dict[str, Any]] = []
        seen, kinds = set(), KINDS[task](rng)
        while len(lines) < count:
            scenes, line = next(kinds)
            if task == "image_text_retrieval" and split != "train" and line["caption"] in seen:
                continue
            seen.add(line.get("caption"))
            number = len(lines)
            names = [f"images/{split}{number}{side}.png" for side in "ab"[: len(scenes)]]
            for name, scene in zip(names, scenes, strict=True):
                image = Image.new("RGB", (SIZE, SIZE), GREY) if hide == "image" else paint(scene, rng)
                image.save(folder / name)
            text = next(name for name in TEXTS if name in line)
            texts.add(line[text])
            line |= {text: "hidden"} if hide == "text" else {}
            lines.append(
                dict(zip(("image", "image2"), names, strict=False)) | line | {"qid": number, "image_id": number}
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in sorted(texts | {"hidden"})))
    return folder
