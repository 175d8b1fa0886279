"""Features of utterances, stored in the form that fairseq's speech_to_text task reads: ZIP:OFFSET:LENGTH."""

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from torchscale_fairseq.core.files import write_atomically
from torchscale_fairseq.core.ops.resampling import resample
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.speech.audio import features, read_audio
from torchscale_fairseq.data.speech.corpora import Utterance

COLUMNS = ("id", "audio", "n_frames", "tgt_text", "speaker")
"""Columns of fairseq's manifests."""


class Chunk(NamedTuple):
    """Utterances whose features share a file."""

    archive: Path
    """The file; its manifest has the same name with .tsv."""
    root: Path
    """Names of files in the manifest are relative to it."""
    utterances: Sequence[Utterance]
    sample_rate: int
    bins: int
    skip_invalid: bool

    @property
    def manifest(self) -> Path:
        """Written last: a chunk that has one is complete."""
        return self.archive.with_suffix(".tsv")


def store(chunk: Chunk) -> list[str]:
    """Compute and store features, and return what was left out, a message for each.

    Raises:
        DataError: a file is unreadable or empty, or a text is, unless they are skipped.
    """
    with write_atomically(chunk.archive) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:

        def add(utterance: Utterance) -> tuple[str, int]:
            frames = _features(utterance, chunk)
            where = _add(archive, f"{len(archive.namelist())}.npy", frames.numpy())
            return f"{chunk.archive.relative_to(chunk.root)}:{where}", len(frames)

        return _write_manifest(chunk, add)


def keep_audio(chunk: Chunk) -> list[str]:
    """Name audio files in a manifest, from which training computes the features; otherwise as ``store``.

    Raises:
        DataError: also for a file of another sample rate, and for parts of files.
    """

    def frames_of(utterance: Utterance) -> tuple[str, int]:
        waveform, rate = read_audio(utterance.audio)
        if rate != chunk.sample_rate:
            raise DataError(
                f"{utterance.audio} has {rate} samples per second, and --sample-rate is {chunk.sample_rate}; give "
                f"--sample-rate {rate} if all files have as many, or leave out --keep-audio"
            )
        if utterance.start or utterance.seconds is not None:
            raise DataError(f"{utterance.audio} holds several utterances; leave out --keep-audio")
        return str(utterance.audio.resolve()), len(features(waveform, rate, chunk.bins, utterance.audio))

    return _write_manifest(chunk, frames_of)


def _write_manifest(chunk: Chunk, locate: Callable[[Utterance], tuple[str, int]]) -> list[str]:
    """Write a row per utterance; ``locate`` gives where its audio or features are, and its frames."""
    rows, problems = [], []
    for utterance in chunk.utterances:
        try:
            if not utterance.text:
                raise DataError(f"{utterance.audio} has no text")
            audio, frames = locate(utterance)
        except DataError as error:
            if not chunk.skip_invalid:
                raise DataError(f"{error}. --skip-invalid leaves out what cannot be used.") from error
            problems.append(str(error))
            continue
        rows.append((utterance.name, audio, str(frames), utterance.text, utterance.speaker))
    with write_atomically(chunk.manifest) as scratch:
        scratch.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return problems


def _features(utterance: Utterance, chunk: Chunk) -> Tensor:
    waveform, rate = read_audio(utterance.audio, utterance.start, utterance.seconds)
    return features(resample(waveform, rate, chunk.sample_rate), chunk.sample_rate, chunk.bins, utterance.audio)


def _add(archive: zipfile.ZipFile, name: str, values: np.ndarray) -> str:
    """Store an array; gives OFFSET:LENGTH of its bytes in the file."""
    content = io.BytesIO()
    np.save(content, values)
    archive.writestr(name, content.getvalue())
    header = archive.getinfo(name).header_offset + len(archive.getinfo(name).FileHeader())
    return f"{header}:{len(content.getvalue())}"
