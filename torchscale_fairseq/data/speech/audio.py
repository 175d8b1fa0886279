"""Audio files, read by soundfile."""

from pathlib import Path

import torch
from torch import Tensor

from torchscale_fairseq.core.ops.filterbank import kaldi_filterbank, window_samples
from torchscale_fairseq.data.problems import DataError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
FULL_SCALE = 2**15
"""Range of 16-bit samples, which Kaldi's features are computed from."""


def read_audio(path: Path, start: float = 0.0, seconds: float | None = None) -> tuple[Tensor, int]:
    """Read a file, or part of it, as one channel: the mean of all.

    Args:
        path: of a WAV, FLAC, OGG or MP3 file.
        start: where the part begins, in seconds.
        seconds: length of the part; None: to the end.

    Returns:
        (samples,), float32 in [-1, 1], and the samples per second.

    Raises:
        DataError: the file cannot be read, or has no samples there.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate: int = file.samplerate
            file.seek(min(round(start * rate), file.frames))
            samples = file.read(-1 if seconds is None else round(seconds * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise unreadable(path, error) from error
    if not len(samples):
        raise DataError(f"{path} has no samples{f' after second {start:g}' if start else ''}")
    return torch.from_numpy(samples).mean(1), rate


def unreadable(path: Path | str, error: Exception) -> DataError:
    """The error of a file that soundfile cannot read."""
    if not Path(path).is_file():
        return DataError(f"{path}: there is no such file")
    reason = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
    return DataError(f"{path} is no audio that libsndfile reads ({reason}); convert it to WAV or FLAC")


def features(waveform: Tensor, rate: int, bins: int, path: Path | str) -> Tensor:
    """(frames, bins), log-mel features of (samples,) in [-1, 1].

    Raises:
        DataError: the waveform is shorter than a frame.
    """
    result = kaldi_filterbank(waveform * FULL_SCALE, rate, bins)
    if not len(result):
        raise DataError(
            f"{path} has {len(waveform)} samples, less than the {window_samples(rate)[0]} of a frame of 25 ms"
        )
    return result
