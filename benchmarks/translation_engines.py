"""One translation model on a CPU: fairseq-generate, this package in Python, and CTranslate2 in float32 and int8.

    scripts/quickstart.sh
    python -m benchmarks.translation_engines runs/mt_deepnorm_small/checkpoint_best.pt data/cldr.en-de.bin

All sides translate the test set by beam search, 5 wide, with two threads and batches of at most --max-tokens tokens.
The sides take turns, and the shortest time of each counts. Times include SentencePiece, except in fairseq-generate, but
no start of a process and no loading of a model.
Beams are compared with those of this package in Python: the best translation, and the set of all five. Two translations
are tied if their scores, mean log-probabilities per token, differ by less than 1e-4.
"""

import argparse
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.compare import positive
from benchmarks.report import machine, versions
from benchmarks.translation import run
from torchscale_fairseq import plugin
from torchscale_fairseq.tools.score_translation import read_hypotheses, read_lines, score

BEAM, LONGEST, TIED = 5, 200, 1e-4
OURS = "this package in Python"


@dataclass(frozen=True)
class Result:
    """A side's translations of the test set, once.

    Args:
        seconds: of translating.
        texts: the best translation of each sentence.
        beams: pieces of each translation of each sentence, the best first, and their scores; None for a side that
            prints its texts alone.
    """

    seconds: float
    texts: list[str]
    beams: list[dict[str, float]] | None = None


Side = Callable[[], Result]


def by_generate(options: argparse.Namespace, count: int) -> Side:
    """fairseq-generate by its own clock."""
    words = ["generate", str(options.data), "--user-dir", plugin.user_dir(), "--path", str(options.checkpoint), "--cpu"]
    words += ["--beam", str(BEAM), "--max-len-b", str(LONGEST), "--max-tokens", str(options.max_tokens)]
    words += ["--bpe", "sentencepiece", "--sentencepiece-model", str(pieces_of(options))]

    def translate() -> Result:
        text = run(words)
        seconds = float(re.findall(r"Translated .* in ([\d.]+)s", text)[-1])
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as log:
            log.write(text)
            log.flush()
            return Result(seconds, read_hypotheses(Path(log.name), count))

    return translate


def by_python(options: argparse.Namespace, sources: list[str]) -> Side:
    """``TranslationModel.from_pretrained`` of this package."""
    from torchscale_fairseq.models.translation import TranslationModel

    path, data = options.checkpoint, str(options.data.resolve())
    model = TranslationModel.from_pretrained(str(path.parent), path.name, data, max_tokens=options.max_tokens)
    symbols = model.task.target_dictionary

    def translate() -> Result:
        start = time.perf_counter()
        found = model.generate([model.encode(line) for line in sources], beam=BEAM)
        texts = [model.decode(beam[0]["tokens"]) for beam in found]
        seconds = time.perf_counter() - start
        beams = [{" ".join(symbols[i] for i in h["tokens"][:-1]): float(h["score"]) for h in beam} for beam in found]
        return Result(seconds, texts, beams)

    return translate


def by_ctranslate2(options: argparse.Namespace, sources: list[str], quantization: str) -> Side:
    """CTranslate2 with the exported model."""
    import ctranslate2
    import sentencepiece

    from torchscale_fairseq.export.ctranslate2.writing import export
    from torchscale_fairseq.export.dictionaries import Dictionaries

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(pieces_of(options)))
    with tempfile.TemporaryDirectory() as scratch:
        export(options.checkpoint, Path(scratch) / "model", Dictionaries(options.data), quantization)
        translator = ctranslate2.Translator(f"{scratch}/model", intra_threads=options.threads)

    def translate() -> Result:
        start = time.perf_counter()
        found = translator.translate_batch(
            pieces.encode(sources, out_type=str),
            beam_size=BEAM,
            num_hypotheses=BEAM,
            return_scores=True,
            max_decoding_length=LONGEST,
            max_batch_size=options.max_tokens,
            batch_type="tokens",
        )
        texts = [pieces.decode(result.hypotheses[0]) for result in found]
        seconds = time.perf_counter() - start
        beams = [dict(zip(map(" ".join, result.hypotheses), result.scores, strict=True)) for result in found]
        return Result(seconds, texts, beams)

    return translate


def agreement(ours: Result, theirs: Result) -> str:
    """How many best translations and sets of five are the same, or tied."""
    if ours.beams is None or theirs.beams is None:
        return ""
    pairs = list(zip(ours.beams, theirs.beams, strict=True))
    best = sum(_is_alike(mine, next(iter(mine)), next(iter(other)), other) for mine, other in pairs)
    whole = sum(mine.keys() == other.keys() for mine, other in pairs)
    return f"{best} and {whole} of {len(pairs)}"


def _is_alike(mine: dict[str, float], first: str, their_first: str, other: dict[str, float]) -> bool:
    return first == their_first or abs(mine[first] - other[their_first]) < TIED


def pieces_of(options: argparse.Namespace) -> Path:
    """The SentencePiece model of the data."""
    path: Path = options.data / "sentencepiece.bpe.model"
    return path


def main(words: list[str]) -> int:
    options = parse_options(words)
    torch.set_num_threads(options.threads)
    sources, references = (read_lines(options.data / f"raw/test.{side}") for side in (options.source, options.target))
    sides = {
        "fairseq-generate": by_generate(options, len(sources)),
        OURS: by_python(options, sources),
        **{f"CTranslate2, {kind}": by_ctranslate2(options, sources, kind) for kind in ("float32", "int8")},
    }
    rounds = [{name: side() for name, side in sides.items()} for _ in range(options.repeats)]
    print(f"`{shlex.join(['python', '-m', 'benchmarks.translation_engines', *words])}`\n")
    print(f"{machine('cpu')}; {versions()}, ctranslate2 {sys.modules['ctranslate2'].__version__}\n")
    print(f"{len(sources)} sentences\n")
    print("| | sentences/s | BLEU | same best translation, same five |\n|---|---|---|---|")
    for name, result in rounds[0].items():
        speed = len(sources) / min(found[name].seconds for found in rounds)
        same = "" if name == OURS else agreement(rounds[0][OURS], result)
        print(f"| {name} | {speed:,.0f} | {score(result.texts, references).bleu:.2f} | {same} |")
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="translation_engines.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="of a model that export ctranslate2 takes")
    add("data", type=Path, help="text that prepare-translation has prepared")
    add("--source", default="en", help="language of the test set's source (en)")
    add("--target", default="de", help="its target language (de)")
    add("--max-tokens", type=positive, default=4000, help="of a batch (4000)")
    add("--threads", type=positive, default=2, help="(2)")
    add("--repeats", type=positive, default=3, help="turns (3)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
