"""Drawn scenes: a model that sees image and text answers questions about them, and the text alone does not suffice."""

import json
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from scripts.experiments import beit3_scenes, common, scenes


def test_hidden_parts_are_the_same_in_every_line(tmp_path: Path) -> None:
    questions = scenes.write_scenes(tmp_path / "text", "visual_question_answering", hide="text", train=5)
    lines = [json.loads(line) for line in (questions / "train.jsonl").read_text().splitlines()]
    assert {line["question"] for line in lines} == {"hidden"} and len({line["answer"] for line in lines}) > 1
    pairs = scenes.write_scenes(tmp_path / "image", "visual_reasoning", hide="image", train=4)
    assert len({image.read_bytes() for image in (pairs / "images").iterdir()}) == 1


def test_captions_to_find_are_different(tmp_path: Path) -> None:
    folder = scenes.write_scenes(tmp_path / "data", "image_text_retrieval", train=1, valid=60)
    captions = [json.loads(line)["caption"] for line in (folder / "valid.jsonl").read_text().splitlines()]
    assert len(set(captions)) == 60


@pytest.mark.slow
@pytest.mark.parametrize(("hide", "least", "most"), [("", 80.0, 100.0), ("image", 0.0, 40.0)])
def test_questions_need_the_image(hide: str, least: float, most: float) -> None:
    """The text alone leaves four answers to each question."""
    run = beit3_scenes.Scenes("visual_question_answering", hide, lines=6000, updates=1500 if not hide else 300, seed=1)
    found = beit3_scenes.measure(run, common.Text(b"", b""), "cpu")
    assert least <= found["vqa_score"] <= most
