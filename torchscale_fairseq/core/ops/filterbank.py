"""Log-mel filterbank features as Kaldi computes them, without dither, so that they repeat exactly."""

from functools import lru_cache

import torch
from torch import Tensor

WINDOW_SECONDS = 0.025
SHIFT_SECONDS = 0.010
PREEMPHASIS = 0.97
LOWEST_HERTZ = 20.0
FLOOR = torch.finfo(torch.float32).eps


def kaldi_filterbank(waveform: Tensor, sample_rate: int, bins: int = 80) -> Tensor:
    """Logarithms of the energies in triangular bands of equal width on the mel scale.

    Windows of 25 ms every 10 ms that lie wholly inside the waveform; each without its mean, pre-emphasised and
    weighted by Povey's window (Kaldi's ``compute-fbank-feats`` and torchaudio's ``compliance.kaldi.fbank``).

    Args:
        waveform: (..., samples), float, in the range of 16-bit integers as Kaldi reads it.
        sample_rate: samples per second.
        bins: number of bands.

    Returns:
        (..., frames, bins); ``frame_count`` says how many frames.
    """
    size, shift = window_samples(sample_rate)
    if waveform.size(-1) < size:
        return waveform.new_zeros(*waveform.shape[:-1], 0, bins)
    frames = waveform.unfold(-1, size, shift)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), -1)
    points = 1 << (size - 1).bit_length()
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * _povey_window(size).to(frames), n=points)
    energies = spectrum.abs().square() @ _mel_weights(sample_rate, points, bins).to(frames)
    return energies.clamp_min(FLOOR).log()


def window_samples(sample_rate: int) -> tuple[int, int]:
    """Samples of a window, and from one window to the next."""
    return int(sample_rate * WINDOW_SECONDS), int(sample_rate * SHIFT_SECONDS)


def frame_count(samples: int, sample_rate: int) -> int:
    """Number of frames of a waveform of ``samples`` samples; 0 if it is shorter than a window."""
    size, shift = window_samples(sample_rate)
    return 0 if samples < size else 1 + (samples - size) // shift


@lru_cache(maxsize=8)
def _povey_window(size: int) -> Tensor:
    return torch.hann_window(size, periodic=False, dtype=torch.float64).pow(0.85)


@lru_cache(maxsize=8)
def _mel_weights(sample_rate: int, points: int, bins: int) -> Tensor:
    """(points / 2 + 1, bins), triangles that overlap by half."""
    frequencies = torch.arange(points // 2 + 1, dtype=torch.float64) * (sample_rate / points)
    mel = _mel(frequencies).unsqueeze(1)
    low, high = _mel(torch.tensor([LOWEST_HERTZ, sample_rate / 2], dtype=torch.float64))
    edges = low + (high - low) / (bins + 1) * torch.arange(bins + 2, dtype=torch.float64)
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    weights = torch.minimum(rising, falling).clamp_min(0)
    weights[-1] = 0  # Kaldi leaves out the Nyquist frequency
    return weights


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * (1 + hertz / 700).log()
