"""A tiny corpus of speech, in which each word is a tone, and the data directory made of it."""

import shlex
from pathlib import Path

import numpy as np

from torchscale_fairseq.tools.command import make_parser

WORDS = ("low", "high", "rise", "fall")
HERTZ = {"low": (300, 300), "high": (2500, 2500), "rise": (400, 2000), "fall": (2000, 400)}
RATE = 16000
SPLITS = {"train": 48, "valid": 8, "test": 8}
TINY = shlex.split(
    "--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64 "
    "--decoder-ffn-embed-dim 64 --encoder-attention-heads 2 --decoder-attention-heads 2 --conv-channels 32 --dropout 0"
)
OPTIMIZED = shlex.split(
    "--optimizer adam --lr 5e-3 --max-tokens 1000 --num-workers 0 --cpu --no-epoch-checkpoints --log-format simple"
)


def say(words: list[str], seed: int) -> np.ndarray:
    """A tone of 0.2 s per word, with a little noise."""
    tones = []
    for word in words:
        start, end = HERTZ[word]
        frequency = np.linspace(start, end, RATE // 5)
        tones.append(0.3 * np.sin(2 * np.pi * np.cumsum(frequency) / RATE))
    sound = np.concatenate(tones)
    return sound + 0.01 * np.random.default_rng(seed).standard_normal(len(sound))


def write_corpus(folder: Path) -> Path:
    """WAV files and a table per split."""
    import soundfile

    folder.mkdir(parents=True)
    for place, (split, size) in enumerate(SPLITS.items()):
        drawn = np.random.default_rng(place)
        rows = ["id\taudio\ttext"]
        for number in range(size):
            words = [WORDS[index] for index in drawn.integers(0, len(WORDS), drawn.integers(2, 5))]
            soundfile.write(folder / f"{split}{number}.wav", say(words, number), RATE)
            rows.append(f"{split}{number}\t{split}{number}.wav\t{' '.join(words)}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def prepare(corpus: Path, output: Path, *flags: str) -> Path:
    """The data directory that torchscale-fairseq data prepare-speech makes."""
    splits = [word for split in SPLITS for word in (f"--{split}", str(corpus / f"{split}.tsv"))]
    words = ["data", "prepare-speech", *splits, "--output", str(output), "--vocab-size", "18", *flags]
    options = make_parser().parse_args(words)
    options.run(options)
    return output


def training(data: Path, save: Path, *flags: str, arch: str = "s2t_magneto_small") -> list[str]:
    """Words of fairseq-train for a tiny model."""
    criterion = ["--criterion", "label_smoothed_cross_entropy_with_ctc", "--ctc-weight", "0.3"]
    task = [str(data), "--task", "speech_to_text", "--arch", arch, *TINY, *OPTIMIZED]
    return [*task, *criterion, "--save-dir", str(save), *flags]
