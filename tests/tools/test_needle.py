"""Needles in long texts: which are hidden, when they count as retrieved, and the command."""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("fairseq")

from tests.tools.families import FAMILIES, Family, write_checkpoint
from tests.tools.in_process import run_tool
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.evaluation.heat_map import table
from torchscale_fairseq.evaluation.models import read_language_model
from torchscale_fairseq.evaluation.needles import NeedleTexts, Row, Words
from torchscale_fairseq.evaluation.retrieval import retrieved, shares_at
from torchscale_fairseq.export.dictionaries import Dictionaries

VOCABULARY = 24
XPOS = {"xpos": Family("gpt_xpos_small", "language_modeling")}
WORDS = Words("w0 {key} w1 {value} w2", ["w3", "w4", "w5"], ["w6", "w7 w8", "w9"])
NUMBERED = {f"w{index}": index + 4 for index in range(20)}


def encode(text: str) -> list[int]:
    return [NUMBERED[word] for word in text.split()]


def texts(needles: int = 1) -> NeedleTexts:
    return NeedleTexts(encode, ["w15 w16 w17 w18", "w19 w17"], WORDS, needles)


class Copier(nn.Module):
    """A decoder that repeats what followed the last tokens where they stood before.

    Args:
        reach: how many tokens it looks back at most; without any it always says w6.
    """

    def __init__(self, reach: int):
        super().__init__()
        self.reach = reach
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor, features_only: bool) -> tuple[Tensor, None]:
        """Features (batch, seq, vocabulary) that are the logits."""
        assert features_only
        logits = torch.zeros(*tokens.shape, VOCABULARY)
        for row, given in enumerate(tokens.tolist()):
            for end in range(len(given)):
                logits[row, end, self._next(given[: end + 1])] = 1
        return logits, None

    def _next(self, read: list[int]) -> int:
        for size in (3, 2):
            for start in range(len(read) - size - 1, max(-1, len(read) - self.reach - 1), -1):
                if read[start : start + size] == read[-size:]:
                    return read[start + size]
        return NUMBERED["w6"]

    def output_layer(self, features: Tensor) -> Tensor:
        return features


def test_the_length_that_is_named_has_room_for_any_needles() -> None:
    words = Words("w2 {key} w3 {value}", keys=("w4", "w4 w5 w6"), values=("w7", "w8 w9"))
    mixed = NeedleTexts(encode, ["w15 w16"], words, needles=2)
    with pytest.raises(InputError, match=r"give at least \d+$") as refused:
        mixed.row(5, 0.5, random.Random(1))
    shortest = int(str(refused.value).rpartition(" ")[2])
    assert {len(mixed.row(shortest, 0.5, random.Random(seed)).tokens) for seed in range(20)} == {shortest}


def test_a_model_that_copies_retrieves_all() -> None:
    for needles in (1, 3):
        how = {"trials": 4, "max_tokens": 100, "seed": 1}
        shares = shares_at(Copier(1000), texts(needles), 40, [0.0, 0.5, 1.0], **how)
        assert shares == {(40, 0.0): 1.0, (40, 0.5): 1.0, (40, 1.0): 1.0}


def test_a_model_that_sees_little_retrieves_what_is_near() -> None:
    """The others only by chance: one value in three is what it says anyway."""
    shares = shares_at(Copier(16), texts(), 60, [0.0, 1.0], trials=30, max_tokens=300, seed=1)
    assert shares[60, 1.0] == 1.0
    assert 0.1 < shares[60, 0.0] < 0.6
    assert table(shares, [60], [0.0, 1.0]).splitlines()[2].split() == ["100%", "100%"]


def test_every_token_of_the_answer_counts() -> None:
    model, [start, key, end] = Copier(1000), [NUMBERED[word] for word in ("w0", "w3", "w1")]
    right, wrong = NUMBERED["w7"], NUMBERED["w8"]
    needle, question = [2, start, key, end, right, wrong], [start, key, end]
    rows = [Row([*needle, *question, *answer], 2) for answer in ((right, wrong), (right, right), (wrong, wrong))]
    assert retrieved(model, rows) == [True, False, False]


@pytest.mark.parametrize("needles", [1, 3])
def test_texts_have_the_length_and_the_needle_at_its_depth(needles: int) -> None:
    for depth in (0.0, 0.5, 1.0):
        row = texts(needles).row(300, depth, random.Random(3))
        assert len(row.tokens) == 300
        key, answer = row.tokens[-row.answer - 2], row.tokens[-row.answer :]
        sentence = [NUMBERED["w0"], key, NUMBERED["w1"], *answer, NUMBERED["w2"]]
        starts = [i for i in range(300) if row.tokens[i : i + len(sentence)] == sentence]
        assert len(starts) == 1
        assert abs(starts[0] / 300 - depth) < 0.08
        assert row.tokens.count(NUMBERED["w0"]) == needles + 1


def test_texts_of_a_seed_are_the_same() -> None:
    first, again, other = (texts().row(50, 0.5, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("needle")
    (made / "dict.txt").write_text("".join(f"{word} 1\n" for word in NUMBERED))
    (made / "text.txt").write_text("w15 w16 w17\nw18 w19\n")
    for name in ("gpt", "xpos", "retnet", "longnet", "mt"):
        write_checkpoint((FAMILIES | XPOS)[name], made / f"{name}.pt")
    return made


def command(folder: Path, name: str, *more: object) -> list[object]:
    given = ["--needle", WORDS.needle, "--keys", "w3,w4,w5", "--values", "w6,w7,w9", "--text", folder / "text.txt"]
    return ["needle", folder / f"{name}.pt", "--data", folder, *given, *more]


@pytest.mark.parametrize("name", ["retnet", "longnet"])
def test_command(name: str, folder: Path) -> None:
    words = command(folder, name, "--lengths", 32, 24, "--depths", 0, 100, "--trials", 3, "--needles", 2)
    lines = run_tool(*words).check().stdout.splitlines()
    assert lines[0].split() == ["depth", "32", "24"]
    assert [line.split()[0] for line in lines[1:]] == ["0%", "100%", "mean"]


def test_heat_map(folder: Path) -> None:
    words = command(folder, "retnet", "--lengths", 32, "--trials", 2, "--output", folder / "maps/needle.png")
    done = run_tool(*words)
    if find_spec("matplotlib") is None:
        assert "this needs matplotlib" in done.last_line
    else:
        assert done.check() and (folder / "maps/needle.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("mt", [], "holds a model of the kind EncoderDecoder; name a checkpoint of a language model"),
        ("gpt", ["--lengths", "64"], "--lengths 64 is more than the 32 positions of the model; give at most 32"),
        (
            "xpos",
            ["--lengths", "128k"],
            "--lengths 131072 is more than the 32,695 tokens that --xpos-scale-base 512 allows; give at most 32695",
        ),
        ("retnet", ["--lengths", "8"], "--lengths 8 has no room for needles and question; give at least 10"),
        ("retnet", ["--lengths", "5x"], "5x must be a number of tokens, such as 512 or 4k"),
        ("retnet", ["--depths", "101"], "101 must be a whole number from 0 to 100"),
        ("retnet", ["--needle", "w1 {value}"], "--needle 'w1 {value}' needs {key} and, after it, {value}"),
        ("retnet", ["--needles", "4"], "--needles 4 needs as many --keys, and there are 3"),
        ("retnet", ["--keys", "Bern"], "the dictionary lacks symbols for 'Bern'; give others with --keys"),
    ],
)
def test_refusals(name: str, more: list[str], message: str, folder: Path) -> None:
    done = run_tool(*command(folder, name), *more)
    assert done.returncode
    assert message in done.last_line


def test_text_is_split_by_a_fast_tokenizer(folder: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    rows = {word: row for row, word in enumerate(["?", *NUMBERED])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(rows, "?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    _, split = read_language_model(folder / "gpt.pt", Dictionaries(folder, tmp_path / "tokenizer.json"))
    assert split("w3 w5 w99") == [*encode("w3 w5"), 3]
