"""torchscale-fairseq data prepare-translation: raw parallel text to a binarised directory."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import sentencepiece

from tests.fairseq_cli import TOOL, Finished, run_beside_fairseq, run_program
from tests.tools.in_process import run_tool
from tests.tools.preprocessing import preprocessing_in_server

PROGRAM = "torchscale-fairseq data prepare-translation"
PREPARE = ("data", "prepare-translation")
LANGUAGES = ("--source-lang", "en", "--target-lang", "de")
PIECES = ("--vocab-size", 64, "--model-type", "bpe")
SIZES = {"train": 90, "valid": 11, "test": 13}


def prepare(*options: object, **environment: str) -> Finished:
    if environment:
        return run_program([*TOOL, *PREPARE, *LANGUAGES, *options], environment=environment)
    with preprocessing_in_server():
        return run_tool(*PREPARE, *LANGUAGES, *options)


def split_options(folder: Path) -> list[object]:
    return [word for split in SIZES for word in (f"--{split}", folder / split)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with {train,valid,test}.{en,de} of made-up words, German in capitals."""
    folder = tmp_path / "text"
    folder.mkdir()
    generator = random.Random(1)
    words = ["".join(generator.choices("aeinorst", k=generator.randint(2, 6))) for _ in range(40)]
    for split, size in SIZES.items():
        lines = [f"{' '.join(generator.choices(words, k=6))} {number}." for number in range(size)]
        (folder / f"{split}.en").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.de").write_text("\n".join(lines).upper() + "\n")
    return folder


def decoded(data: Path, split: str) -> dict[str, list[str]]:
    """Returns the lines that fairseq reads from the binarised files, put together again."""
    code = f"""
        from fairseq.data import Dictionary, data_utils
        for language in ("en", "de"):
            dictionary = Dictionary.load(f"{data}/dict.{{language}}.txt")
            for tokens in data_utils.load_indexed_dataset(f"{data}/{split}.en-de.{{language}}", dictionary):
                print(language, dictionary.string(tokens, bpe_symbol="sentencepiece"), sep="\\t")
    """
    printed = run_beside_fairseq(code, plugin=False).check().stdout.splitlines()
    return {
        language: [line.removeprefix(f"{language}\t") for line in printed if line.startswith(f"{language}\t")]
        for language in ("en", "de")
    }


def test_two_files_per_split(text: Path, tmp_path: Path) -> None:
    data = tmp_path / "made" / "data"
    prepare(*split_options(text), "--output", data, *PIECES).check()
    for split in SIZES:
        for language, lines in decoded(data, split).items():
            assert lines == (text / f"{split}.{language}").read_text().splitlines()
    for language in ("en", "de"):
        assert (data / f"raw/test.{language}").read_bytes() == (text / f"test.{language}").read_bytes()
        assert len((data / f"dict.{language}.txt").read_text().splitlines()) == 64 - 3
    assert sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model")).get_piece_size() == 64
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_one_pair_to_be_split(text: Path, tmp_path: Path) -> None:
    english, german = text / "train.en", text / "train.de"
    english.write_text("same source\n" * 5 + english.read_text())
    german.write_text("".join(f"ANDERS {number}\n" for number in range(5)) + german.read_text())
    data = tmp_path / "data"
    options = ("--input", text / "train", "--valid-lines", 7, "--test-lines", 83 - 7)
    prepare(*options, "--output", data, *PIECES).check()
    splits = {split: decoded(data, split) for split in SIZES}
    assert {split: len(lines["en"]) for split, lines in splits.items()} == {"train": 12, "valid": 7, "test": 76}
    for lines in splits.values():
        for source, target in zip(lines["en"], lines["de"], strict=True):
            assert source == "same source" or source.upper() == target
    sources = [set(lines["en"]) for lines in splits.values()]
    assert sum(map(len, sources)) == len(set.union(*sources))
    assert sum(len(lines["en"]) for lines in splits.values()) == 95


def remove_last_line(text: Path) -> None:
    path = text / "valid.de"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def spoil_line(name: str, content: bytes):
    def spoil(text: Path) -> None:
        lines = (text / name).read_bytes().splitlines(keepends=True)
        lines[2] = content
        (text / name).write_bytes(b"".join(lines))

    return spoil


BAD_TEXT = {
    "different_length": (
        remove_last_line,
        "--valid {text}/valid: {text}/valid.en has 11 lines and {text}/valid.de has 10; line n of one must",
    ),
    "empty_line": (
        spoil_line("train.de", b" \n"),
        "--train: lines without text in {text}/train.de: 3; remove them from both languages, or leave them out with",
    ),
    "undecodable": (
        spoil_line("test.en", b"caf\xe9\n"),
        "--test: {text}/test.en, line 3: byte 0xe9 is not UTF-8; convert it, as with: iconv",
    ),
    "carriage_return": (
        spoil_line("test.en", b"one\rtwo\n"),
        "--test: {text}/test.en, line 3 has a carriage return or a null inside; remove it",
    ),
    "invisible": (
        spoil_line("valid.en", "\u200b\n".encode()),
        "--valid: lines without text in {text}/valid.en: 3; remove them from both languages, or leave them out with",
    ),
    "missing_file": (
        lambda text: (text / "test.de").unlink(),
        "--test: cannot read {text}/test.de: No such file or directory",
    ),
    "empty_file": (
        lambda text: (text / "test.de").write_text(""),
        "--test: {text}/test.de is empty",
    ),
    "blank_file": (
        lambda text: (text / "test.de").write_text("\n" * SIZES["test"]),
        "--test {text}/test: no line has text in both languages",
    ),
    "many_empty_lines": (
        lambda text: (text / "train.en").write_text("\n" * 12 + "word\n" * (SIZES["train"] - 12)),
        "--train: lines without text in {text}/train.en: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more; remove them",
    ),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_ends_with_one_line_and_leaves_nothing(case: str, text: Path, tmp_path: Path) -> None:
    spoil, message = BAD_TEXT[case]
    spoil(text)
    refuses(message.format(text=text), *split_options(text), "--output", tmp_path / "out" / "data", *PIECES)
    assert not any((tmp_path / "out").glob("*"))


def test_pairs_with_an_empty_line_are_dropped(text: Path, tmp_path: Path) -> None:
    for name, content in (("train.de", b" \n"), ("train.en", b"\n"), ("test.en", "\u200b\n".encode())):
        spoil_line(name, content)(text)
    data = tmp_path / "data"
    done = prepare(*split_options(text), "--output", data, *PIECES, "--drop-empty").check()
    for split, size in (("train", 90), ("test", 13)):
        assert f"--{split} {text}/{split}: left out 1 of {size} pairs of lines, of which one has no text" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("data: 89 train, 11 valid, 12 test pairs, 64 pieces")
    for language in ("en", "de"):
        lines = (text / f"test.{language}").read_text().splitlines()
        assert (data / f"raw/test.{language}").read_text().splitlines() == lines[:2] + lines[3:]


def refuses(message: str, *options: object, **environment: str) -> None:
    done = prepare(*options, **environment)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{PROGRAM}: {message}")


def test_refuses_a_directory_in_use(text: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "notes").write_text("mine")
    message = f"{data} exists and is not an empty directory; remove it or name another"
    refuses(message, *split_options(text), "--output", data, *PIECES)
    assert [path.name for path in data.iterdir()] == ["notes"]


def test_refuses_more_pieces_than_the_text_gives(text: Path, tmp_path: Path) -> None:
    message = "--vocab-size 5000 does not fit this text: Vocabulary size too high (5000). Please set it to a value"
    refuses(message, *split_options(text), "--output", tmp_path / "data", "--vocab-size", 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_refuses_to_draw_more_lines_than_there_are(text: Path, tmp_path: Path) -> None:
    message = "--valid-lines 60 and --test-lines 30 ask for 90; --input {}/train has 90 lines, of which 90 occur once"
    options = ("--input", text / "train", "--valid-lines", 60, "--test-lines", 30, "--output", tmp_path / "data")
    refuses(message.format(text), *options, *PIECES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "name either --train, --valid and --test, or --input"),
        ("--input a --train b", "name either --train, --valid and --test, or --input"),
        ("--train a --test b", "--train, --test without --valid; to split one pair of files, use --input"),
        ("--input a --target-lang en", "--source-lang and --target-lang are both 'en'; name two languages"),
    ],
)
def test_refuses_options_that_do_not_go_together(options: str, message: str, tmp_path: Path) -> None:
    done = prepare("--output", tmp_path / "data", *options.split())
    assert done.returncode == 1
    assert done.last_line == f"{PROGRAM}: {message}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--test-lines 0", "argument --test-lines: 0 must be a whole number of at least 1"),
        ("--vocab 10", "unknown: --vocab 10; did you mean --vocab-size?"),
    ],
)
def test_refuses_options_that_it_does_not_know(options: str, message: str, tmp_path: Path) -> None:
    done = prepare("--output", tmp_path / "data", "--input", "a", *options.split())
    assert done.returncode == 2
    assert done.last_line == f"{PROGRAM}: error: {message}"


def stand_in_for_fairseq(folder: Path, code: str) -> str:
    """Returns a folder for PYTHONPATH in which fairseq-preprocess runs ``code``."""
    package = folder / "stand_in" / "fairseq_cli"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "preprocess.py").write_text(code)
    return str(package.parent)


def test_failure_of_fairseq_preprocess_leaves_nothing(text: Path, tmp_path: Path) -> None:
    path = stand_in_for_fairseq(tmp_path, "raise SystemExit('disk full')")
    output = tmp_path / "out" / "data"
    message = "fairseq-preprocess failed: disk full"
    refuses(message, *split_options(text), "--output", output, *PIECES, PYTHONPATH=path)
    assert not any(output.parent.iterdir())


def heed_ctrl_c() -> None:
    """Background jobs of a shell, such as a test run may be, ignore it, and so do the processes that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("request_to_stop", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_being_stopped_leaves_nothing(request_to_stop: signal.Signals, text: Path, tmp_path: Path) -> None:
    sign = tmp_path / "preprocessing"
    path = stand_in_for_fairseq(tmp_path, f"open({str(sign)!r}, 'w'); import time; time.sleep(60)")
    output = tmp_path / "out" / "data"
    words = [*TOOL, *PREPARE, *LANGUAGES, *split_options(text), "--output", output, *PIECES]
    process = subprocess.Popen(
        list(map(str, words)),
        env={"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_ctrl_c,
    )
    deadline = time.monotonic() + 30
    while not sign.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert any(output.parent.iterdir())
    process.send_signal(request_to_stop)
    assert process.wait(timeout=30) != 0
    assert not any(output.parent.iterdir())
