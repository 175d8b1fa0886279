"""Score translations with sacrebleu: BLEU, chrF and exact match, overall and per kind of sentence; with --comet by
COMET as well."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchscale_fairseq.core.errors import InputError

EXAMPLE = "torchscale-fairseq score-translation runs/en-de/generate-test.txt --reference data/en-de/raw/test.de"
DETOKENISED = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")
"""A line of fairseq-generate: number of the sentence, score, text."""


@dataclass(frozen=True)
class Score:
    sentences: int
    bleu: float
    chrf: float
    exact: float
    """Percentage of hypotheses that equal their reference."""
    comet: float | None = None
    """Mean over the sentences; None without --comet."""


def run(options: argparse.Namespace) -> None:
    references = read_lines(options.reference)
    hypotheses = read_hypotheses(options.hypotheses, len(references))
    kinds = read_parallel(options.kinds, references) if options.kinds else None
    sources = read_parallel(options.source, references) if options.source else None
    comet = None
    if options.comet:
        if sources is None:
            raise InputError(f"--comet {options.comet} reads the source sentences; name their file with --source")
        from torchscale_fairseq.evaluation.comet import comet_scores

        comet = comet_scores(options.comet, sources, hypotheses, references)
    print(table(score_by_kind(hypotheses, references, kinds, comet)))
    for index in spread(len(references), options.samples):
        print()
        if sources:
            print(f"source     {sources[index]}")
        print(f"ours       {hypotheses[index]}")
        print(f"reference  {references[index]}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "hypotheses",
        type=Path,
        metavar="FILE",
        help="the output of fairseq-generate, or one plain translation per line",
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="FILE", help="the references as plain text, one per line"
    )
    parser.add_argument("--source", type=Path, metavar="FILE", help="the source sentences, for the samples and --comet")
    parser.add_argument(
        "--kinds", type=Path, metavar="FILE", help="one word per line, the kind of the sentence; each kind is scored"
    )
    parser.add_argument(
        "--comet", metavar="MODEL", help="score by this COMET model: a .ckpt file, or a name to download"
    )
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="print N translations (default: 0)")


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start})") from error


def read_parallel(path: Path, references: Sequence[str]) -> list[str]:
    lines = read_lines(path)
    if len(lines) != len(references):
        raise InputError(f"{path} has {len(lines)} lines, but --reference has {len(references)}")
    return lines


def read_hypotheses(path: Path, count: int) -> list[str]:
    """Read the best translation of each sentence, in the order of the references."""
    lines = read_lines(path)
    best: dict[int, str] = {}
    for match in filter(None, map(DETOKENISED.fullmatch, lines)):
        best.setdefault(int(match[1]), match[2])
    if not best:
        if len(lines) != count:
            raise InputError(f"{path} has {len(lines)} lines, but --reference has {count}")
        return lines
    missing = sorted(set(range(count)) - set(best))
    if missing or len(best) > count:
        absent = f"sentence {missing[0]} is missing" if missing else f"sentence {max(best)} is beyond it"
        raise InputError(
            f"{path} has translations of {len(best)} sentences, but --reference has {count} lines ({absent}); "
            "use the raw text of the same test set, and --user-dir torchscale_fairseq to translate all of it"
        )
    return [best[index] for index in range(count)]


def score_by_kind(
    hypotheses: Sequence[str],
    references: Sequence[str],
    kinds: Sequence[str] | None,
    comet: Sequence[float] | None = None,
) -> dict[str, Score]:
    """Score each kind in the order of their names, and then all together.

    Args:
        hypotheses, references: a sentence each.
        kinds: of the sentences.
        comet: score of each sentence.
    """
    chosen = {
        kind: [index for index, name in enumerate(kinds or []) if name == kind] for kind in sorted(set(kinds or []))
    }
    chosen["all"] = list(range(len(references)))
    rows = {}
    for kind, indices in chosen.items():
        row = score([hypotheses[index] for index in indices], [references[index] for index in indices])
        mean = None if comet is None else sum(comet[index] for index in indices) / len(indices)
        rows[kind] = replace(row, comet=mean)
    return rows


def score(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    import sacrebleu

    matches = sum(ours == theirs for ours, theirs in zip(hypotheses, references, strict=True))
    return Score(
        sentences=len(references),
        bleu=sacrebleu.corpus_bleu(hypotheses, [references]).score,
        chrf=sacrebleu.corpus_chrf(hypotheses, [references]).score,
        exact=100 * matches / len(references),
    )


def table(rows: dict[str, Score]) -> str:
    with_comet = any(row.comet is not None for row in rows.values())
    lines = [f"{'':<12} {'sentences':>9} {'BLEU':>6} {'chrF':>6} {'exact':>7}{'   COMET' if with_comet else ''}"]
    for kind, row in rows.items():
        comet = "" if row.comet is None else f" {row.comet:>7.4f}"
        lines.append(f"{kind:<12} {row.sentences:>9} {row.bleu:>6.1f} {row.chrf:>6.1f} {row.exact:>6.1f}%{comet}")
    return "\n".join(lines)


def spread(count: int, samples: int) -> list[int]:
    """Indices of samples at even distances."""
    samples = min(samples, count)
    return [index * count // samples for index in range(samples)]
