"""Raw parallel text to a directory for fairseq-train: one joint SentencePiece model, fairseq-preprocess.

Either two files per split (--train, --valid, --test) or one pair of files to be split (--input). A file is
PREFIX.LANGUAGE, UTF-8, one sentence per line.

The directory then holds what fairseq-train reads, and beside it sentencepiece.bpe.model (for
--bpe sentencepiece --sentencepiece-model) and raw/test.*, the test text as it was, to score against.
"""

import argparse
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import sentencepiece

Text = dict[str, list[str]]
"""The lines of one split, per language."""

SPLITS = ("train", "valid", "test")
MODEL_NAME = "sentencepiece.bpe"


class InputError(Exception):
    """What is wrong with the user's input, and a way out, in one line."""


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        prepare(options)
    except InputError as error:
        print(f"prepare_translation.sh: {error}", file=sys.stderr)
        return 1
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare_translation.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--source-lang", required=True, metavar="LANGUAGE", help="suffix of the source files")
    parser.add_argument("--target-lang", required=True, metavar="LANGUAGE", help="suffix of the target files")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new directory")
    for split in SPLITS:
        parser.add_argument(f"--{split}", metavar="PREFIX", help=f"the {split} split, PREFIX.LANGUAGE")
    parser.add_argument("--input", metavar="PREFIX", help="one pair of files to be split, PREFIX.LANGUAGE")
    drawing = parser.add_argument_group("with --input")
    drawing.add_argument("--valid-lines", type=int, default=1000, metavar="N", help="default 1000")
    drawing.add_argument("--test-lines", type=int, default=1000, metavar="N", help="default 1000")
    drawing.add_argument("--seed", type=int, default=1, help="decides which lines are drawn; default 1")
    pieces = parser.add_argument_group("SentencePiece")
    pieces.add_argument("--vocab-size", type=int, default=8000, metavar="N", help="default 8000")
    pieces.add_argument("--model-type", choices=["unigram", "bpe", "char"], default="unigram")
    pieces.add_argument("--character-coverage", type=float, default=1.0, metavar="SHARE", help="default 1.0")
    pieces.add_argument("--split-digits", action="store_true", help="make every digit a piece of its own")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of fairseq-preprocess; default 1")
    options = parser.parse_args()
    given = [f"--{split}" for split in SPLITS if getattr(options, split)]
    if bool(options.input) == bool(given):
        parser.error("name either --train, --valid and --test, or --input")
    if given and len(given) < len(SPLITS):
        missing = ", ".join(f"--{split}" for split in SPLITS if f"--{split}" not in given)
        parser.error(f"{', '.join(given)} without {missing}; to split one pair of files, use --input")
    if options.source_lang == options.target_lang:
        parser.error(f"--source-lang and --target-lang are both '{options.source_lang}'")
    for name in ("valid_lines", "test_lines", "vocab_size", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def prepare(options: argparse.Namespace) -> None:
    target: Path = options.output
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--output {target} exists and is not an empty directory; remove it or name another")
    splits = read_splits(options)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {target} cannot be made: {error.strerror}") from error
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        work, made = scratch / "work", scratch / "made"
        (made / "raw").mkdir(parents=True)
        work.mkdir()
        tokenizer = train_tokenizer(splits["train"], made / MODEL_NAME, options)
        for split, text in splits.items():
            write_pieces(tokenizer, text, work / split)
        write_text(splits["test"], made / "raw" / "test")
        write_dictionary(tokenizer, work / "dict.txt")
        binarise(work, made, options)
        made.chmod(0o755)
        made.rename(target)
    finally:
        shutil.rmtree(scratch)
    counts = ", ".join(f"{len(text[options.source_lang])} {split}" for split, text in splits.items())
    print(f"wrote {target}: {counts} pairs, {tokenizer.get_piece_size()} pieces")


def read_splits(options: argparse.Namespace) -> dict[str, Text]:
    languages = (options.source_lang, options.target_lang)
    if not options.input:
        return {split: read_pair(f"--{split}", getattr(options, split), languages) for split in SPLITS}
    text = read_pair("--input", options.input, languages)
    return split_pair(text, options)


def read_pair(option: str, prefix: str, languages: tuple[str, str]) -> Text:
    text = {language: read_lines(option, Path(f"{prefix}.{language}")) for language in languages}
    source, target = (len(lines) for lines in text.values())
    if source != target:
        raise InputError(
            f"{option} {prefix}: {prefix}.{languages[0]} has {source} lines and {prefix}.{languages[1]} has "
            f"{target}; line n of one must translate line n of the other"
        )
    return text


def read_lines(option: str, path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{option}: cannot read {path}: {error.strerror}") from error
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
        if not text.strip():
            raise InputError(f"{where} is empty; remove it from both languages")
        if "\r" in text or "\0" in text:
            raise InputError(f"{where} has a carriage return or a null inside; remove it")
        lines.append(text)
    return lines


def split_pair(text: Text, options: argparse.Namespace) -> dict[str, Text]:
    """Draws the valid and test lines among those whose source occurs once, so that train shares none."""
    source = text[options.source_lang]
    occurrences = Counter(source)
    unique = [index for index, line in enumerate(source) if occurrences[line] == 1]
    wanted = options.valid_lines + options.test_lines
    if wanted >= len(source) or wanted > len(unique):
        raise InputError(
            f"--valid-lines {options.valid_lines} and --test-lines {options.test_lines} ask for {wanted}; "
            f"--input {options.input} has {len(source)} lines, of which {len(unique)} occur once; ask for fewer"
        )
    drawn = random.Random(options.seed).sample(unique, wanted)
    held_out = set(drawn)
    indices = {
        "train": [index for index in range(len(source)) if index not in held_out],
        "valid": sorted(drawn[: options.valid_lines]),
        "test": sorted(drawn[options.valid_lines :]),
    }
    return {
        split: {language: [lines[index] for index in chosen] for language, lines in text.items()}
        for split, chosen in indices.items()
    }


def train_tokenizer(text: Text, prefix: Path, options: argparse.Namespace) -> sentencepiece.SentencePieceProcessor:
    print(f"training a SentencePiece model of {options.vocab_size} pieces", flush=True)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for lines in text.values() for line in lines),
            model_prefix=str(prefix),
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            split_digits=options.split_digits,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).split("] ", 1)[-1].strip()
        raise InputError(f"--vocab-size {options.vocab_size} does not fit this text: {reason}") from error
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


def write_pieces(tokenizer: sentencepiece.SentencePieceProcessor, text: Text, prefix: Path) -> None:
    for language, lines in text.items():
        encoded = tokenizer.encode(lines, out_type=str)
        for number, pieces in enumerate(encoded, start=1):
            if not pieces:
                raise InputError(
                    f"line {number} of the {prefix.name} split has no visible character in '{language}'; remove it"
                )
        write_text({language: [" ".join(pieces) for pieces in encoded]}, prefix)


def write_text(text: Text, prefix: Path) -> None:
    for language, lines in text.items():
        content = "".join(f"{line}\n" for line in lines)
        Path(f"{prefix}.{language}").write_bytes(content.encode("utf-8"))


def write_dictionary(tokenizer: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Lists every piece but <unk>, <s> and </s>, which fairseq adds; the counts it asks for have no use."""
    pieces = [tokenizer.id_to_piece(index) for index in range(tokenizer.get_piece_size())]
    content = "".join(f"{piece} 1\n" for piece in pieces[3:])
    path.write_bytes(content.encode("utf-8"))


def binarise(work: Path, made: Path, options: argparse.Namespace) -> None:
    arguments = ["--source-lang", options.source_lang, "--target-lang", options.target_lang]
    for split in SPLITS:
        arguments += [f"--{split}pref", str(work / split)]
    arguments += ["--joined-dictionary", "--srcdict", str(work / "dict.txt")]
    arguments += ["--destdir", str(made), "--workers", str(options.workers)]
    print("running: fairseq-preprocess", shlex.join(arguments), flush=True)
    command = [sys.executable, "-m", "fairseq_cli.preprocess", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        last = (run.stderr.strip() or f"exit status {run.returncode}").splitlines()[-1]
        raise InputError(f"fairseq-preprocess failed: {last}")


if __name__ == "__main__":
    sys.exit(main())
