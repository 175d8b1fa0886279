"""Steps of preparing text that several subcommands share: options, reading, SentencePiece, fairseq-preprocess."""

import argparse
import io
import random
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.data.splits import SPLITS
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from torchscale_fairseq.data.problems import Problems

LINES_AT_ONCE = 10_000
MODEL_FILE = "sentencepiece.bpe.model"


def add_preparation_options(parser: argparse.ArgumentParser, *, file: str, what: str) -> None:
    """Declare the options that all kinds of text have.

    Args:
        parser: of the subcommand.
        file: how an input file is named, such as PREFIX.LANGUAGE.
        what: is given with --input, to be split.
    """
    metavar = file.split(".")[0]
    where = f", in {file}" if file != metavar else ""
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the directory to make")
    for split in SPLITS:
        parser.add_argument(f"--{split}", metavar=metavar, help=f"text of the {split} split{where}")
    parser.add_argument("--input", metavar=metavar, help=f"{what} to split{where}")
    drawing = parser.add_argument_group("with --input")
    drawing.add_argument(
        "--valid-lines", type=positive, default=1000, metavar="N", help="lines to validate on (default: 1000)"
    )
    drawing.add_argument(
        "--test-lines", type=positive, default=1000, metavar="N", help="lines to test on (default: 1000)"
    )
    drawing.add_argument("--seed", type=int, default=1, metavar="N", help="decides which lines are drawn (default: 1)")
    pieces = parser.add_argument_group("SentencePiece")
    pieces.add_argument(
        "--vocab-size", type=positive, default=8000, metavar="N", help="pieces of the vocabulary (default: 8000)"
    )
    pieces.add_argument("--model-type", choices=["unigram", "bpe", "char"], default="unigram", help="default: unigram")
    pieces.add_argument(
        "--character-coverage",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of characters that get a piece (default: 1.0)",
    )
    pieces.add_argument("--split-digits", action="store_true", help="make every digit a piece of its own")
    parser.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="processes of fairseq-preprocess (default: 1)"
    )
    parser.set_defaults(what=what)


def check_options(options: argparse.Namespace) -> None:
    """Check that the text is named in one way.

    Raises:
        InputError: it is not.
    """
    given = [f"--{split}" for split in SPLITS if getattr(options, split)]
    if bool(options.input) == bool(given):
        raise InputError("name either --train, --valid and --test, or --input")
    if given and len(given) < len(SPLITS):
        missing = ", ".join(f"--{split}" for split in SPLITS if f"--{split}" not in given)
        raise InputError(f"{', '.join(given)} without {missing}; to split {options.what}, use --input")


def read_lines(option: str, path: Path) -> list[str]:
    """Read UTF-8 text, with any line ends that editors write."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{option}: cannot read {path}: {error.strerror}") from error
    if not content:
        raise InputError(f"{option}: {path} is empty")
    lines = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{option}: {path}, line {number}"
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise InputError(
                f"{where}: byte 0x{byte:02x} is not UTF-8; convert it, as with: iconv -f ISO-8859-1 -t UTF-8"
            ) from error
        if "\r" in text or "\0" in text:
            raise InputError(f"{where} has a carriage return or a null inside; remove it")
        lines.append(text)
    return lines


def print_left_out(problems: "Problems") -> None:
    """Print a line for each kind of problem that was skipped."""
    for kind, count in problems.counts.items():
        print(f"left out {count:,} {kind}, the first: {problems.first[kind]}")


def draw_lines(lines: Sequence[str], options: argparse.Namespace) -> dict[str, list[int]]:
    """Draw the valid and test lines among those that occur once, so that train shares none; gives indices."""
    occurrences = Counter(lines)
    unique = [index for index, line in enumerate(lines) if occurrences[line] == 1]
    wanted = options.valid_lines + options.test_lines
    if wanted >= len(lines) or wanted > len(unique):
        raise InputError(
            f"--valid-lines {options.valid_lines} and --test-lines {options.test_lines} ask for {wanted}; "
            f"--input {options.input} has {len(lines)} lines, of which {len(unique)} occur once; ask for fewer"
        )
    drawn = random.Random(options.seed).sample(unique, wanted)
    held_out = set(drawn)
    return {
        "train": [index for index in range(len(lines)) if index not in held_out],
        "valid": sorted(drawn[: options.valid_lines]),
        "test": sorted(drawn[options.valid_lines :]),
    }


def train_tokenizer(lines: Iterable[str], options: argparse.Namespace, **settings: Any) -> "SentencePieceProcessor":
    """A tokenizer, nothing of which is on disk: SentencePiece says nothing when it writes half a file."""
    import sentencepiece

    content = io.BytesIO()
    print(f"training a SentencePiece model of {options.vocab_size} pieces", flush=True)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=content,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            split_digits=options.split_digits,
            minloglevel=2,
            **settings,
        )
    except RuntimeError as error:
        reason = str(error).split("] ", 1)[-1].strip().replace("--character_coverage", "--character-coverage")
        if not reason:
            raise InputError("the text to learn from is empty") from error
        raise InputError(f"--vocab-size {options.vocab_size} does not fit this text: {reason}") from error
    return sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())


def write_tokenizer(tokenizer: "SentencePieceProcessor", path: Path) -> None:
    path.write_bytes(tokenizer.serialized_model_proto())


def write_lines(lines: Iterable[str], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))


def write_pieces(tokenizer: "SentencePieceProcessor", lines: Sequence[str], path: Path, what: str) -> None:
    """Write the pieces of each line with spaces between them.

    Args:
        tokenizer: splits lines.
        lines: the text.
        path: of the file.
        what: the text is called in the progress bar.
    """
    chunks = [lines[first : first + LINES_AT_ONCE] for first in range(0, len(lines), LINES_AT_ONCE)]
    encoded = (
        " ".join(pieces)
        for chunk in progress(chunks, f"encoding {what}", f"{LINES_AT_ONCE:,} lines")
        for pieces in tokenizer.encode(chunk, out_type=str)
    )
    write_lines(encoded, path)


def write_dictionary(tokenizer: "SentencePieceProcessor", path: Path) -> None:
    """List every piece but <unk>, <s> and </s>, which fairseq adds; the counts it asks for have no use."""
    pieces = [tokenizer.id_to_piece(index) for index in range(3, tokenizer.get_piece_size())]
    write_lines((f"{piece} 1" for piece in pieces), path)


def preprocess(splits: Path, made: Path, options: argparse.Namespace, *arguments: str) -> None:
    """Run fairseq-preprocess on the pieces and the dictionary in the directory ``splits``, and remove it."""
    words = [*arguments]
    for split in SPLITS:
        words += [f"--{split}pref", str(splits / split)]
    words += ["--srcdict", str(splits / "dict.txt"), "--destdir", str(made), "--workers", str(options.workers)]
    print("running: fairseq-preprocess", shlex.join(words), flush=True)
    command = [sys.executable, "-m", "fairseq_cli.preprocess", *words]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        last = (run.stderr.strip() or f"exit status {run.returncode}").splitlines()[-1]
        raise InputError(f"fairseq-preprocess failed: {last}")
    shutil.rmtree(splits)
