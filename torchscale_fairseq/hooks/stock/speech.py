"""Repairs of stock fairseq's path from audio files to batches and word error rates, one function per failure."""

import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fairseq.data import data_utils
from fairseq.data.audio import audio_utils

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.resampling import resample
from torchscale_fairseq.data.speech import audio

UNNAMED = "the audio"
"""Stands for a file whose name is not known."""
ADVICE = "mend the file, or leave it out."
UNKNOWN = 0.5
"""Share of unknown tokens from which a dictionary is taken for that of other data."""


def read_mp3() -> None:
    """``--task speech_to_text`` refuses MP3 files, which libsndfile reads since its version 1.1."""
    for suffixes in (audio_utils.SF_AUDIO_FILE_EXTENSIONS, audio_utils.FEATURE_OR_SF_AUDIO_FILE_EXTENSIONS):
        suffixes.add(".mp3")


def convert_without_torchaudio(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Reading any audio file needs the effects of SoX, which torchaudio has not had since its version 2.9. Rates,
    channels and volume are now converted in torch, in the same way whatever is installed."""

    def convert_waveform(
        waveform: Any,
        sample_rate: int,
        normalize_volume: bool = False,
        to_mono: bool = False,
        to_sample_rate: int | None = None,
    ) -> tuple[Any, int]:
        x, rate = torch.as_tensor(waveform), to_sample_rate or sample_rate
        if normalize_volume:
            x = x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny)
        x = resample(x, sample_rate, rate)
        if to_mono:
            x = x.mean(0, keepdim=True)
        return (x.numpy() if isinstance(waveform, np.ndarray) else x), rate

    return convert_waveform


def compute_features_without_torchaudio(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Filterbank features of audio files need PyKaldi or torchaudio. Now they are computed in torch, with the values of
    torchaudio."""

    def fbank(waveform: np.ndarray, sample_rate: int, n_bins: int = 80) -> np.ndarray:
        mono = torch.from_numpy(waveform).float().mean(0) / audio.FULL_SCALE
        return audio.features(mono, sample_rate, n_bins, UNNAMED).numpy()

    return fbank


def name_unusable_audio(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A file of the manifest that is missing, empty, no audio or of another rate than the data's ends in an error of a
    library, in NaN, or in features that mean something else. Now the file is named."""

    def get_features_or_waveform(
        path: str, need_waveform: bool = False, use_sample_rate: int | None = None, waveform_transforms: Any = None
    ) -> Any:
        is_audio = Path(path).suffix in audio.SUFFIXES
        if is_audio and not need_waveform:
            _check_rate(path, use_sample_rate)
        try:
            result = stock(path, need_waveform, use_sample_rate, waveform_transforms)
        except InputError as error:
            raise InputError(f"{str(error).replace(UNNAMED, path)}; {ADVICE}") from error
        except (RuntimeError, OSError, IndexError, ValueError, EOFError) as error:
            raise InputError(_unusable(path, error)) from error
        if not len(result):
            raise InputError(f"{path} has length zero; {ADVICE}")
        return result

    return get_features_or_waveform


def _unusable(path: str, error: Exception) -> str:
    """The message for FILE, or FILE:OFFSET:LENGTH of features."""
    file = path.partition(":")[0]
    if Path(file).suffix in audio.SUFFIXES or not Path(file).is_file():
        return f"{audio.unreadable(file, error)}; {ADVICE}"
    return f"{path} holds no features that numpy reads ({error}); make them again."


def _check_rate(path: str, wanted: int | None) -> None:
    import soundfile

    try:
        rate = soundfile.info(path).samplerate
    except (RuntimeError, OSError) as error:
        raise InputError(f"{audio.unreadable(path, error)}; {ADVICE}") from error
    if wanted is not None and rate != wanted:
        raise InputError(
            f"{path} has {rate} samples per second, and the data {wanted} (use_sample_rate in its YAML file); resample "
            f"the file, or set use_sample_rate: {rate} if all files have as many."
        )


def warp_time_without_opencv(stock: Callable[..., Any]) -> Callable[..., Any]:
    """SpecAugment with ``time_warp_W`` ends with ``No module named 'cv2'``. Without OpenCV, time is now warped by
    torch's linear interpolation, which has the same values."""
    if importlib.util.find_spec("cv2") is not None:
        return stock

    def call(self: Any, spectrogram: np.ndarray) -> np.ndarray:
        without_warp = copy.copy(self)
        without_warp.time_warp_w = 0
        warps = 0 < 2 * self.time_warp_w < len(spectrogram)
        result: np.ndarray = stock(without_warp, _warped(spectrogram, self.time_warp_w) if warps else spectrogram)
        return result

    return call


def _warped(spectrogram: np.ndarray, most: int) -> np.ndarray:
    """Frames before a random one are stretched to end up to ``most`` frames from it, and the rest is fitted."""
    centre = np.random.randint(most, len(spectrogram) - most)
    moved = centre + np.random.randint(-most + 1, most)
    parts = ((spectrogram[:centre], moved), (spectrogram[centre:], len(spectrogram) - moved))
    stretched = [
        torch.nn.functional.interpolate(torch.from_numpy(np.ascontiguousarray(part.T))[None], size, mode="linear")[0].T
        for part, size in parts
    ]
    return torch.cat(stretched).numpy()


def draw_augmentation_by_epoch(stock: Callable[..., Any]) -> Callable[..., Any]:
    """SpecAugment, noise and speed perturbation draw from numpy's global state: with ``--num-workers`` every epoch
    draws the same, and a run that is resumed draws other numbers than one that is not. Now an utterance's are drawn
    from seed, epoch and place."""

    def getitem(self: Any, index: int) -> Any:
        with data_utils.numpy_seed(getattr(self.cfg, "seed", 1), getattr(self, "epoch", 1), index):
            return stock(self, index)

    return getitem


def know_the_epoch(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``set_epoch`` of the data set, which keeps the epoch for ``draw_augmentation_by_epoch``."""

    def set_epoch(self: Any, epoch: int) -> None:
        self.epoch = epoch

    return set_epoch


def know_the_seed(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``from_tsv`` of the data set, which keeps the seed for ``draw_augmentation_by_epoch``."""

    def from_tsv(cls: type, root: str, cfg: Any, *rest: Any, seed: int, **more: Any) -> Any:
        cfg.seed = seed
        return stock(cls, root, cfg, *rest, seed=seed, **more)

    return from_tsv


def compare_dictionary_with_text(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A manifest whose dictionary or SentencePiece model belongs to other data trains on unknown tokens; fairseq only
    logs their share. Now it is an error if they are more than half."""

    def get_tgt_lens_and_check_oov(self: Any) -> list[int]:
        lengths: list[int] = stock(self)
        if self.tgt_texts is not None and self.is_train_split:
            sample = range(0, self.n_samples, math.ceil(self.n_samples / 100))
            tokens = [token for index in sample for token in self.get_tokenized_tgt_text(index).split(" ")]
            unknown = [token for token in tokens if self.tgt_dict.index(token) == self.tgt_dict.unk()]
            if len(unknown) > UNKNOWN * len(tokens):
                raise InputError(
                    f"{len(unknown)} of {len(tokens)} tokens of the {self.split} split, such as {unknown[0]!r}, are "
                    "not in the dictionary; name dict.txt and the SentencePiece model of this data in its YAML file."
                )
        return lengths

    return get_tgt_lens_and_check_oov


def count_errors_without_editdistance(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--scoring wer`` needs the package editdistance. Without it, this package counts the edits."""
    if importlib.util.find_spec("editdistance") is not None:
        return stock

    def init(self: Any, cfg: Any) -> None:
        with patch.dict(sys.modules, editdistance=SimpleNamespace(eval=edit_distance)):
            stock(self, cfg)

    return init


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The fewest insertions, deletions and substitutions that turn one sequence into the other."""
    distances = list(range(len(b) + 1))
    for row, item in enumerate(a, 1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(b, 1):
            diagonal, distances[column] = (
                distances[column],
                min(distances[column] + 1, distances[column - 1] + 1, diagonal + (item != other)),
            )
    return distances[-1]
