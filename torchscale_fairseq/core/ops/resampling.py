"""Band-limited resampling of waveforms."""

import math
from functools import lru_cache

import torch
from torch import Tensor

ZEROS = 16
"""Zero crossings of the sinc on each side."""
ROLLOFF = 0.95
"""Share of the narrower band that passes."""


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resample by a windowed sinc, evaluated at each phase of the two rates.

    Args:
        waveform: (..., samples), float.
        rate: samples per second.
        new_rate: those of the result.

    Returns:
        (..., ceil(samples * new_rate / rate)).
    """
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor
    if old == new:
        return waveform
    kernels, reach = _kernels(old, new)
    samples = waveform.size(-1)
    rows = torch.nn.functional.pad(waveform.reshape(-1, 1, samples), (reach, reach + old))
    phases = torch.nn.functional.conv1d(rows, kernels.to(rows), stride=old)
    result = phases.transpose(1, 2).reshape(*waveform.shape[:-1], -1)
    return result[..., : -(-samples * new // old)]


@lru_cache(maxsize=32)
def _kernels(old: int, new: int) -> tuple[Tensor, int]:
    """(new, 1, taps), a filter for each phase of the result, and the samples that it reads before its own."""
    cutoff = min(old, new) * ROLLOFF / old
    reach = math.ceil(ZEROS / cutoff)
    taps = torch.arange(-reach, reach + old, dtype=torch.float64)
    distance = taps - torch.arange(new, dtype=torch.float64).unsqueeze(1) * old / new
    window = torch.cos((distance / (reach + 1)).clamp(-1, 1) * math.pi / 2).square()
    return (cutoff * torch.sinc(cutoff * distance) * window).unsqueeze(1), reach
