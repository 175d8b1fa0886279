"""scripts/experiments/needle_texts.py: texts that state facts again."""

import json
import random
from pathlib import Path

from scripts.experiments.needle_texts import VALUES, text, write
from torchscale_fairseq.evaluation.needles import HAYSTACK, NEEDLE


def test_texts_state_one_value_of_each_key(tmp_path: Path) -> None:
    write(tmp_path, {"train": 50, "valid": 2})
    texts = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    start = NEEDLE.partition("{key}")[0]
    for found in texts:
        sentences = [f"{sentence} ." for sentence in found.removesuffix(" .").split(" . ")]
        facts = {sentence for sentence in sentences if sentence.startswith(start)}
        assert set(sentences) - facts <= set(HAYSTACK)
        assert len(facts) == len({fact.split(" is ")[0] for fact in facts}) <= 4
        assert {fact.split(" is ")[1].removesuffix(" .") for fact in facts} <= set(VALUES)
    assert len(texts) == 50 and texts[0] == text(random.Random("train"))
