"""torchscale-fairseq data prepare-language: raw text to a binarised directory. What it shares with prepare-translation
is tested there."""

import gzip
import json
import random
from itertools import chain
from pathlib import Path

import pytest
import sentencepiece

from tests.fairseq_cli import Finished, run_beside_fairseq
from tests.tools.in_process import run_tool
from tests.tools.preprocessing import preprocessing_in_server

PROGRAM = "torchscale-fairseq data prepare-language"
PIECES = ("--vocab-size", 310)
SIZES = {"train": 90, "valid": 11, "test": 13}


def prepare(*options: object) -> Finished:
    with preprocessing_in_server():
        return run_tool("data", "prepare-language", *options)


STRANGE = ["Œuvre ½ … ﬁn", "日本語", "🜁 e\u0301 \u200b.", "a <unk> </s> <0x41>"]


def made_up_text(folder: Path) -> Path:
    """A folder with {train,valid,test}.txt of made-up words, and in the test text what may get lost."""
    folder.mkdir()
    generator = random.Random(1)
    words = ["".join(generator.choices("aeinorst", k=generator.randint(2, 6))) for _ in range(40)]
    for split, size in SIZES.items():
        lines = [f"{' '.join(generator.choices(words, k=6))} {number}." for number in range(size)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    with (folder / "train.txt").open("a") as file:
        file.write("quixotic " * 1000 + "\n")
    with (folder / "test.txt").open("a", encoding="utf-8") as file:
        file.write("\n".join([*STRANGE, " a\tb\u00a0 c \r", "", "   ", "d\u2028e <mask>, f"]) + "\n")
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return made_up_text(tmp_path / "text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds text and what is made of it."""
    folder = tmp_path_factory.mktemp("language")
    text = made_up_text(folder / "text")
    done = prepare(*split_options(text), "--output", folder / "made" / "data", *PIECES).check()
    assert done.stdout.splitlines()[-1].endswith("made/data: 91 train, 11 valid, 21 test lines, 310 pieces")
    return folder


def split_options(folder: Path) -> list[object]:
    return [word for split in SIZES for word in (f"--{split}", folder / f"{split}.txt")]


def read_back(data: Path, split: str) -> list[list[str]]:
    """Returns the symbols of each line as fairseq reads them."""
    code = f"""
        from fairseq.data import Dictionary, data_utils
        dictionary = Dictionary.load("{data}/dict.txt")
        for tokens in data_utils.load_indexed_dataset("{data}/{split}", dictionary):
            print(">", *(dictionary[token] for token in tokens))
    """
    printed = run_beside_fairseq(code, plugin=False).check().stdout.splitlines()
    return [line.split(" ")[1:] for line in printed if line.startswith("> ")]


def decoded(data: Path, split: str) -> list[str]:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model"))
    lines = read_back(data, split)
    assert all(symbols[-1] == "</s>" for symbols in lines)
    return [tokenizer.decode(symbols[:-1]) for symbols in lines]


def test_holds_what_fairseq_needs(folder: Path) -> None:
    data = folder / "made" / "data"
    assert [path.name for path in data.parent.iterdir()] == ["data"]
    assert sorted(path.name for path in data.iterdir()) == [
        "dict.txt",
        "preprocess.log",
        "raw",
        "sentencepiece.bpe.model",
        *(f"{split}.{suffix}" for split in ("test", "train", "valid") for suffix in ("bin", "idx")),
    ]
    assert len((data / "dict.txt").read_text("utf-8").splitlines()) == 310 - 3


def test_changes_nothing_but_white_space(folder: Path) -> None:
    data = folder / "made" / "data"
    for split in ("train", "valid"):
        lines = (folder / "text" / f"{split}.txt").read_text().splitlines()
        assert decoded(data, split) == [line.strip() for line in lines]
    test = decoded(data, "test")
    assert test[13:] == [*STRANGE, "a b c", "", "", "d e <mask>, f"]
    assert (data / "raw/test.txt").read_text("utf-8") == "".join(f"{line}\n" for line in test)


def test_nothing_is_unknown_and_a_mask_is_one_piece(folder: Path) -> None:
    symbols = read_back(folder / "made" / "data", "test")
    assert not any("<unk>" in line for line in symbols)
    assert "<mask>" in symbols[-1]


def test_long_lines_are_learnt_from(folder: Path) -> None:
    assert "\u2581quixotic 1" in (folder / "made/data/dict.txt").read_text("utf-8").splitlines()


def test_one_file_to_be_split(text: Path, tmp_path: Path) -> None:
    lines = (text / "train.txt").read_text().splitlines()[:-1]
    (text / "train.txt").write_text("\n".join(["the same line"] * 5 + lines))
    data = tmp_path / "data"
    options = ("--input", text / "train.txt", "--valid-lines", 7, "--test-lines", 9)
    prepare(*options, "--output", data, *PIECES).check()
    splits = {split: decoded(data, split) for split in SIZES}
    assert {split: len(chosen) for split, chosen in splits.items()} == {"train": 79, "valid": 7, "test": 9}
    assert splits["train"].count("the same line") == 5
    assert sorted(chain(*splits.values())) == sorted(["the same line"] * 5 + lines)


def test_reads_json_lines(text: Path, tmp_path: Path) -> None:
    """As a document per line, and leaves out lines without text if it may."""
    lines = (text / "train.txt").read_text().splitlines()
    records = [json.dumps({"body": line}) for line in lines]
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*records, "{}"]).encode()))
    words = ["--train", path, "--text-field", "body", "--valid", text / "valid.txt", "--test", text / "test.txt"]
    refused = prepare(*words, "--output", tmp_path / "data", *PIECES)
    assert f"{path}, line {len(lines) + 1}: has no field 'body' (there: none)" in refused.stderr
    done = prepare(*words, "--skip-invalid", "--output", tmp_path / "data", *PIECES).check()
    assert "left out 1 invalid lines, the first: " in done.stdout
    found = decoded(tmp_path / "data", "train")
    assert [line for line in found if line] == [" ".join(line.split()) for line in lines if line.strip()]


def test_refuses_a_file_without_text(text: Path, tmp_path: Path) -> None:
    (text / "valid.txt").write_text("\n \n")
    done = prepare(*split_options(text), "--output", tmp_path / "data", *PIECES)
    assert done.returncode == 1
    assert done.stderr == f"{PROGRAM}: --valid: {text}/valid.txt has no text\n"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_refuses_a_vocabulary_without_room_for_bytes(text: Path, tmp_path: Path) -> None:
    done = prepare(*split_options(text), "--output", tmp_path / "data", "--vocab-size", 100)
    assert done.returncode == 1
    assert done.last_line.startswith(f"{PROGRAM}: --vocab-size 100 does not fit this text: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "name either --train, --valid and --test, or --input"),
        ("--train a --test b", "--train, --test without --valid; to split one file, use --input"),
    ],
)
def test_refuses_options_that_do_not_go_together(options: str, message: str, tmp_path: Path) -> None:
    done = prepare("--output", tmp_path / "data", *options.split())
    assert done.returncode == 1
    assert done.last_line == f"{PROGRAM}: {message}"
