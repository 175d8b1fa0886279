"""Splits text into the pieces of a SentencePiece model: a line of standard input to a line of standard output."""

import argparse
import sys


def main() -> int:
    options = parse_options()
    import sentencepiece  # later than --help

    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=options.model)
    except OSError as error:
        print(f"encode_text.py: cannot read --model {options.model}: {error}", file=sys.stderr)
        return 1
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for line in sys.stdin:
        print(*tokenizer.encode(line.strip(), out_type=str))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="encode_text.py", description=__doc__)
    parser.add_argument("--model", required=True, metavar="FILE", help="a sentencepiece.bpe.model")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
