"""Speak lines of text with espeak-ng, for first trials of speech recognition and translation.

Each line gets a voice, a speed, a pitch and noise of its own. Two voices out of seven are kept for --held-out, so that
a test set has voices that training has not. The directory holds WAV files and TABLE.tsv, which data prepare-speech
reads: the column text has the text to learn, and the column spoken the line.

espeak-ng is a program of its own (Debian: apt-get install espeak-ng). A call that is repeated resumes.
"""

import argparse
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.tools.data import preparation
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress

EXAMPLE = "torchscale-fairseq data speak-text text/test.en --language en --output spoken --name test"
PROGRAM = "espeak-ng"
ACCENTS = {"en": ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp"), "de": ("de",)}
VARIANTS = ("m1", "m3", "m5", "m7", "f2", "f4", "f5")
HELD_OUT = ("m7", "f5")
WORDS_PER_MINUTE = (130, 190)
PITCH = (30, 70)
NOISE_DECIBELS = (15.0, 30.0)
"""Speech above noise."""


class Reading(NamedTuple):
    """A line, and how it is read aloud."""

    text: str
    learnt: str
    """The text that a model learns to write: the line, or its translation."""
    voice: str
    speed: int
    pitch: int
    noise: float
    """Decibels of the speech above it."""
    seed: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", type=Path, metavar="FILE", help="text in UTF-8, with one sentence per line")
    parser.add_argument("--translations", type=Path, metavar="FILE", help="line by line, the text to learn instead")
    parser.add_argument("--language", choices=sorted(ACCENTS), default="en", help="of the text (default: en)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory of tables and audio")
    parser.add_argument("--name", required=True, metavar="TABLE", help="name of the table, such as train")
    parser.add_argument("--lines", type=positive, metavar="N", help="speak the first N lines (default: all)")
    parser.add_argument("--without-digits", action="store_true", help="leave out lines with digits")
    parser.add_argument("--held-out", action="store_true", help="use the voices that are kept for tests")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides voices and noise (default: 1)")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="programs at a time (default: 2)")


def run(options: argparse.Namespace) -> None:
    if shutil.which(PROGRAM) is None:
        raise InputError(f"{PROGRAM} is not installed; install it (Debian: apt-get install {PROGRAM})")
    readings = [read_how(line, learnt, number, options) for number, (line, learnt) in enumerate(read_lines(options))]
    folder = options.output / options.name
    make_directory(folder)
    files = [folder / f"{number:05d}.wav" for number in range(len(readings))]

    def speak_line(number: int) -> None:
        if not files[number].exists():
            speak(readings[number], files[number])

    with ThreadPoolExecutor(options.workers) as pool:
        for _ in progress([pool.submit(speak_line, n) for n in range(len(files))], f"speaking {options.name}", "lines"):
            _.result()
    rows = [
        "\t".join((f"{options.name}-{n:05d}", str(file.relative_to(options.output)), r.learnt, r.text, r.voice))
        for n, (file, r) in enumerate(zip(files, readings, strict=True))
    ]
    with write_atomically(options.output / f"{options.name}.tsv") as scratch:
        preparation.write_lines(["id\taudio\ttext\tspoken\tspeaker", *rows], scratch)
    print(f"wrote {options.output / options.name}.tsv: {len(rows)} lines by {len({r.voice for r in readings})} voices")


def read_lines(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Lines to speak, each with the text to learn."""
    spoken = preparation.read_lines("FILE", options.text)
    learnt = preparation.read_lines("--translations", options.translations) if options.translations else spoken
    if len(learnt) != len(spoken):
        raise InputError(
            f"{options.text} has {len(spoken)} lines, and --translations {options.translations} has {len(learnt)}"
        )
    pairs = zip(spoken, learnt, strict=True)
    kept = [p for p in pairs if not (options.without_digits and any(c.isdigit() for c in p[0] + p[1]))]
    if len(kept) < (options.lines or 1):
        raise InputError(f"--lines {options.lines} is more than the {len(kept)} lines of {options.text} that are left")
    return kept[: options.lines]


def read_how(line: str, learnt: str, number: int, options: argparse.Namespace) -> Reading:
    drawn = random.Random(f"{options.seed} {options.name} {number}")
    variants = HELD_OUT if options.held_out else [v for v in VARIANTS if v not in HELD_OUT]
    voice = f"{drawn.choice(ACCENTS[options.language])}+{drawn.choice(variants)}"
    speed, pitch = drawn.randint(*WORDS_PER_MINUTE), drawn.randint(*PITCH)
    return Reading(line, learnt, voice, speed, pitch, drawn.uniform(*NOISE_DECIBELS), drawn.randrange(2**31))


def speak(reading: Reading, path: Path) -> None:
    """Write a WAV file."""
    import numpy as np
    import soundfile

    words = [PROGRAM, "-v", reading.voice, "-s", str(reading.speed), "-p", str(reading.pitch), "--stdin", "-w"]
    with write_atomically(path) as scratch:
        run = subprocess.run([*words, str(scratch)], input=reading.text.encode(), capture_output=True, check=False)
        if run.returncode:
            raise InputError(f"{PROGRAM} -v {reading.voice} failed: {run.stderr.decode(errors='replace').strip()}")
        samples, rate = soundfile.read(scratch, dtype="float32")
        noise = np.random.default_rng(reading.seed).standard_normal(len(samples)).astype(np.float32)
        noise = np.cumsum(noise) - np.cumsum(np.pad(noise, (50, 0))[:-50])  # low frequencies are the loudest
        level = np.sqrt(np.mean(samples**2) / np.mean(noise**2) / 10 ** (reading.noise / 10))
        mixed = np.clip(samples + level * noise, -1, 1)
        soundfile.write(scratch, mixed, rate, format="WAV", subtype="PCM_16")
