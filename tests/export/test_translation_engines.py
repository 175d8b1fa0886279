"""A trained model in fairseq and in CTranslate2, and benchmarks/translation_engines.py, which compares the two."""

import random
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("ctranslate2")
pytest.importorskip("sentencepiece")

from benchmarks import translation_engines
from benchmarks.translation_engines import Result, agreement
from tests.fairseq_cli import USER_DIR, run_fairseq
from tests.plugin.shrunk import shrunk
from tests.tools.in_process import run_tool

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs", "and": "und"}
SENTENCES = 200


def write_numbers(folder: Path) -> None:
    """Write numbers in English and German: 1,000 sentences to train with and 200 for each other split."""
    generator = random.Random(0)
    folder.mkdir()
    for split, count in (("train", 1000), ("valid", SENTENCES), ("test", SENTENCES)):
        lines = [generator.choices([*WORDS], k=generator.randint(3, 9)) for _ in range(count)]
        german = [[WORDS[word] for word in line] for line in lines]
        for language, content in (("en", lines), ("de", german)):
            (folder / f"{split}.{language}").write_text("\n".join(map(" ".join, content)) + "\n")


def train(folder: Path) -> None:
    """Train a small model, which learns most of the words, into folder/run, with folder/data."""
    write_numbers(folder / "text")
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", folder / "text" / split)]
    prepare = ["--source-lang", "en", "--target-lang", "de", "--output", folder / "data", "--vocab-size", 36]
    run_tool("data", "prepare-translation", *prepare, *splits).check()
    sizes = shlex.split("--encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 128 --dropout 0")
    optimizer = shlex.split("--optimizer adam --lr 3e-3 --lr-scheduler inverse_sqrt --warmup-updates 40 --seed 1")
    length = shlex.split("--max-tokens 1000 --max-update 250 --disable-validation --no-epoch-checkpoints")
    words = [*shrunk("mt_deepnorm_small"), *sizes, *optimizer, *length, "--criterion", "cross_entropy"]
    where = [str(folder / "data"), "--user-dir", str(USER_DIR), "--save-dir", str(folder / "run"), "--cpu"]
    run_fairseq("train", [*where, *words]).check()


@pytest.mark.slow
def test_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best of 200 translations in float32, and BLEU in int8."""
    train(tmp_path)
    words = [str(tmp_path / "run/checkpoint_last.pt"), str(tmp_path / "data"), "--repeats", "1"]
    assert translation_engines.main(words) == 0
    rows = re.findall(r"^\| (.*) \| [\d.,]+ \| ([\d.]+) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE)
    names, bleu, same = zip(*rows, strict=True)
    assert names == ("fairseq-generate", "this package in Python", "CTranslate2, float32", "CTranslate2, int8")
    assert 20 < float(bleu[1]) == float(bleu[0]) == float(bleu[2])
    assert abs(float(bleu[3]) - float(bleu[1])) <= 0.2
    assert same[2].startswith(f"{SENTENCES} and ")


def test_ties_are_no_differences() -> None:
    def result(*beams: dict[str, float]) -> Result:
        return Result(1.0, [], list(beams))

    ours = result({"a": -0.5, "b": -0.6}, {"a": -0.5, "b": -0.50001}, {"a": -0.5, "b": -0.6})
    theirs = result({"a": -0.5, "b": -0.6}, {"b": -0.50001, "a": -0.5}, {"c": -0.4, "a": -0.5})
    assert agreement(ours, theirs) == "2 and 2 of 3"
