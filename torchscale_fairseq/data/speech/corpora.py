"""Speech corpora on disk: which utterances they have, in the layouts that corpora are published in."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torchscale_fairseq.data.problems import DataError

KNOWN = (
    "a table with the columns audio and text, a table of CommonVoice, a folder of LibriSpeech, or a folder of MuST-C's "
    "such as en-de/data/train"
)


class Utterance(NamedTuple):
    """Speech and its text."""

    name: str
    audio: Path
    text: str
    speaker: str = ""
    start: float = 0.0
    """Where it begins in the file, in seconds."""
    seconds: float | None = None
    """Its length; None: to the end of the file."""


def read_corpus(path: Path, text: str | None) -> list[Utterance]:
    """The utterances of a corpus, in the order in which it lists them.

    Args:
        path: of a table or folder.
        text: the column, or for MuST-C the language, of the text; None for the layout's own.

    Raises:
        DataError: the path is in no layout that is known, or has no utterances.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; name {KNOWN}.")
    layout = _of_table if path.is_file() else _of_folder(path)
    found = list(layout(path, text))
    if not found:
        raise DataError(f"{path} has no utterances; name {KNOWN}.")
    return found


Layout = Callable[[Path, str | None], Iterator[Utterance]]


def _of_folder(path: Path) -> Layout:
    if list(path.glob("txt/*.yaml")):
        return _must_c
    if next(path.rglob("*.trans.txt"), None) is not None:
        return _librispeech
    raise DataError(f"{path} is a folder of no layout that is known; name {KNOWN}.")


def _of_table(path: Path, text: str | None) -> Iterator[Utterance]:
    """A table with a header, separated by tabs, or by commas if its name ends in .csv. Audio files are looked for
    in the table's folder, and CommonVoice's in clips/ there."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            is_csv = path.suffix == ".csv"
            reader = csv.DictReader(file) if is_csv else csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = reader.fieldnames or []
            is_common_voice = {"path", "sentence"} <= set(names)
            audio, own_text = ("path", "sentence") if is_common_voice else ("audio", "text")
            folder = path.parent / "clips" if is_common_voice else path.parent
            for column in (audio, text or own_text):
                if column not in names:
                    raise DataError(f"{path} has no column {column}, but {', '.join(names)}; name {KNOWN}.")
            for number, row in enumerate(reader):
                yield Utterance(
                    row.get("id") or f"{path.stem}-{number}",
                    folder / (row[audio] or ""),
                    row[text or own_text] or "",
                    row.get("speaker") or row.get("client_id") or "",
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table in UTF-8 ({error}); name {KNOWN}.") from error


def _librispeech(path: Path, text: str | None) -> Iterator[Utterance]:
    """Lines of NAME.trans.txt are the name of a file next to it, without .flac, and its text."""
    if text not in (None, "en"):
        raise DataError(f"{path} has English text alone, and --text is {text}; leave --text out.")
    for transcripts in sorted(path.rglob("*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, _, words = line.partition(" ")
            if name:
                yield Utterance(name, transcripts.parent / f"{name}.flac", words, name.split("-")[0])


def _must_c(path: Path, text: str | None) -> Iterator[Utterance]:
    """Items of txt/NAME.yaml are parts of files in wav/; lines of txt/NAME.LANGUAGE are their texts."""
    import yaml

    for listed in sorted(path.glob("txt/*.yaml")):
        parts: list[dict[str, Any]] = yaml.safe_load(listed.read_text(encoding="utf-8"))
        lines = _lines_of_language(listed, text)
        if len(lines) != len(parts):
            raise DataError(f"{listed} has {len(parts)} items and its text {len(lines)} lines; they belong together.")
        for number, (part, line) in enumerate(zip(parts, lines, strict=True)):
            audio, speaker = path / "wav" / part["wav"], str(part.get("speaker_id", ""))
            name = f"{Path(part['wav']).stem}_{number}"
            yield Utterance(name, audio, line, speaker, float(part["offset"]), float(part["duration"]))


def _lines_of_language(listed: Path, language: str | None) -> list[str]:
    languages = sorted(file.suffix[1:] for file in listed.parent.glob(f"{listed.stem}.*") if file != listed)
    if language not in languages:
        raise DataError(f"{listed.parent} has text in {', '.join(languages)}; name one of them with --text.")
    return listed.with_suffix(f".{language}").read_text(encoding="utf-8").removesuffix("\n").split("\n")


def fingerprint(utterances: list[Utterance]) -> str:
    """Changes when the utterances do."""
    return hashlib.sha256(json.dumps([[str(cell) for cell in row] for row in utterances]).encode()).hexdigest()[:16]
