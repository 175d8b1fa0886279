"""Make a data directory for --task speech_to_text from audio files and their texts.

A split is one or several of:
  a table with the columns audio and text (and id, speaker), separated by tabs, or by commas in a .csv
  a table of CommonVoice, such as en/train.tsv
  a folder of LibriSpeech, such as LibriSpeech/train-clean-100
  a folder of MuST-C, such as en-de/data/train, with --text en or --text de

WAV, FLAC, OGG and MP3 files are read. The directory holds the features (80 log-mel bands every 10 ms), manifests, a
SentencePiece model with its dict.txt, and config.yaml with normalisation and SpecAugment. With --keep-audio it holds no
features: training computes them from the audio, with speed perturbation.

A call that is repeated resumes where the last one ended.
"""

import argparse
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.tools.data import preparation
from torchscale_fairseq.tools.data.splits import SPLITS
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress

if TYPE_CHECKING:
    from torchscale_fairseq.data.speech.corpora import Utterance
    from torchscale_fairseq.data.speech.features import Chunk

EXAMPLE = (
    "torchscale-fairseq data prepare-speech --train speech/train.tsv --valid speech/valid.tsv \\\n"
    "    --test speech/test.tsv --output data/speech --vocab-size 18"
)
CHUNK = 500
"""Utterances whose features share a file."""
BANDS = 80
SETTINGS = "settings.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            required=split == "train",
            type=Path,
            nargs="+",
            default=[],
            metavar="CORPUS",
            help=f"speech of the {split} split",
        )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the directory to make or complete")
    parser.add_argument("--text", metavar="NAME", help="the column, or for MuST-C the language, of the text to learn")
    parser.add_argument("--lowercase", action="store_true", help="write the text in lower case")
    parser.add_argument(
        "--remove-punctuation", action="store_true", help="keep letters, digits, apostrophes and spaces"
    )
    parser.add_argument("--keep-audio", action="store_true", help="store no features; training computes them")
    parser.add_argument(
        "--sample-rate",
        type=positive,
        default=16000,
        metavar="N",
        help="samples per second; other audio is resampled, or refused with --keep-audio (default: 16000)",
    )
    parser.add_argument(
        "--vocab-size", type=positive, default=1000, metavar="N", help="pieces of the vocabulary (default: 1000)"
    )
    parser.add_argument("--model-type", choices=["unigram", "bpe", "char"], default="unigram", help="default: unigram")
    parser.add_argument("--no-specaugment", action="store_true", help="train without SpecAugment, as for a few epochs")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="leave out unreadable and empty files, and name them"
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default: 1)")
    parser.set_defaults(character_coverage=1.0, split_digits=False)


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.data.speech.corpora import read_corpus

    splits = {
        split: [u for path in getattr(options, split) for u in read_corpus(path, options.text)] for split in SPLITS
    }
    splits = {split: [clean(u, options) for u in utterances] for split, utterances in splits.items() if utterances}
    make_directory(options.output / "features")
    check_settings(options, splits)
    problems = [problem for split, found in splits.items() for problem in prepare_split(split, found, options)]
    write_vocabulary((u.text for u in splits["train"]), options)
    write_configuration(options)
    for problem in problems:
        print(f"left out: {problem}")
    counts = ", ".join(f"{count_rows(options.output / f'{split}.tsv')} {split}" for split in splits)
    print(f"wrote {options.output}: {counts} utterances")


def clean(utterance: "Utterance", options: argparse.Namespace) -> "Utterance":
    """The utterance with its text as it is to be learnt, in one line."""
    text = utterance.text.lower() if options.lowercase else utterance.text
    if options.remove_punctuation:
        text = "".join(c if c.isalnum() or c == "'" else " " for c in text)
    return utterance._replace(text=" ".join(text.split()))


def check_settings(options: argparse.Namespace, splits: dict[str, list["Utterance"]]) -> None:
    """Raise InputError if the directory was begun from other speech or with other options."""
    from torchscale_fairseq.data.speech.corpora import fingerprint

    names = ("keep_audio", "sample_rate", "vocab_size", "model_type", "no_specaugment", "skip_invalid")
    settings = {name: getattr(options, name) for name in names}
    settings |= {split: fingerprint(utterances) for split, utterances in splits.items()}
    path = options.output / SETTINGS
    if path.exists() and json.loads(path.read_text()) != settings:
        raise InputError(
            f"--output {options.output} was begun from other speech or with other options; remove it, or name another."
        )
    with write_atomically(path) as scratch:
        scratch.write_text(json.dumps(settings))


def prepare_split(split: str, utterances: list["Utterance"], options: argparse.Namespace) -> list[str]:
    """Write the manifest of a split, and its features if they are stored; gives what was left out."""
    from torchscale_fairseq.data.speech.features import COLUMNS, Chunk

    root = options.output
    parts = [utterances[first : first + CHUNK] for first in range(0, len(utterances), CHUNK)]
    chunks = [
        Chunk(
            root / "features" / f"{split}.{number:05d}.zip",
            root,
            part,
            options.sample_rate,
            BANDS,
            options.skip_invalid,
        )
        for number, part in enumerate(parts)
    ]
    problems = run_chunks([chunk for chunk in chunks if not chunk.manifest.exists()], split, options)
    rows = [line for chunk in chunks for line in chunk.manifest.read_text(encoding="utf-8").splitlines()]
    if not rows:
        raise InputError(f"--{split}: no utterance is left.")
    with write_atomically(root / f"{split}.tsv") as scratch:
        preparation.write_lines(["\t".join(COLUMNS), *rows], scratch)
    return problems


def run_chunks(chunks: list["Chunk"], split: str, options: argparse.Namespace) -> list[str]:
    import torch

    from torchscale_fairseq.data.speech.features import keep_audio, store

    work = keep_audio if options.keep_audio else store
    what = (f"reading {split}", f"{CHUNK} utterances")
    if options.workers == 1:
        return [problem for chunk in progress(chunks, *what) for problem in work(chunk)]
    # One thread each: threads of processes that share cores would wait for each other most of the time.
    with ProcessPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tasks = [pool.submit(work, chunk) for chunk in chunks]
        return [problem for task in progress(tasks, *what) for problem in task.result()]


def write_vocabulary(lines: Iterable[str], options: argparse.Namespace) -> None:
    model = options.output / preparation.MODEL_FILE
    if model.exists():
        return
    tokenizer = preparation.train_tokenizer((line for line in lines if line), options)
    with write_atomically(options.output / "dict.txt") as scratch:
        preparation.write_dictionary(tokenizer, scratch)
    with write_atomically(model) as scratch:
        preparation.write_tokenizer(tokenizer, scratch)


def write_configuration(options: argparse.Namespace) -> None:
    """Write config.yaml, as fairseq's task reads it, unless it is there: it may have been changed by hand."""
    import yaml

    path = options.output / "config.yaml"
    if path.exists():
        return
    augmentation = [] if options.no_specaugment else ["specaugment"]
    content: dict[str, Any] = {
        "audio_root": str(options.output.resolve()),
        "vocab_filename": "dict.txt",
        "bpe_tokenizer": {"bpe": "sentencepiece", "sentencepiece_model": preparation.MODEL_FILE},
        "input_channels": 1,
        "input_feat_per_channel": BANDS,
        "sample_rate": options.sample_rate,
        "use_sample_rate": options.sample_rate,
        "shuffle": True,
        "feature_transforms": {"*": ["utterance_cmvn"], "_train": ["utterance_cmvn", *augmentation]},
        "specaugment": {
            "time_warp_W": 0,
            "freq_mask_N": 2,
            "freq_mask_F": 27,
            "time_mask_N": 2,
            "time_mask_T": 100,
            "time_mask_p": 0.2,
        },
    }
    if options.keep_audio:
        content["waveform_transforms"] = {"_train": ["speed_perturbation"]}
        content["speed_perturbation"] = {"factors": [0.9, 1.0, 1.1]}
    with write_atomically(path) as scratch:
        scratch.write_text(yaml.safe_dump(content, sort_keys=False))


def count_rows(manifest: Path) -> int:
    return len(manifest.read_text(encoding="utf-8").splitlines()) - 1
