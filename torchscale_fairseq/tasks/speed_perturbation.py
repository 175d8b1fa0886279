"""Speed perturbation: ``waveform_transforms: {_train: [speed_perturbation]}`` in a YAML file of --task speech_to_text.

"Audio Augmentation for Speech Recognition", Interspeech 2015: each utterance is read at a speed drawn from
``speed_perturbation: {factors: [0.9, 1.0, 1.1]}``, which changes its pitch as well.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data.audio.waveform_transforms import AudioWaveformTransform, register_audio_waveform_transform

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.resampling import resample

FACTORS = (0.9, 1.0, 1.1)


@register_audio_waveform_transform("speed_perturbation")
class SpeedPerturbation(AudioWaveformTransform):
    """Reads a waveform at a speed drawn from ``factors``.

    Args:
        factors: speeds relative to the original, in steps of a hundredth.

    Raises:
        InputError: a factor is not from 0.5 to 2.
    """

    def __init__(self, factors: Sequence[float]):
        if not factors or not all(0.5 <= factor <= 2 for factor in factors):
            raise InputError(
                f"speed_perturbation in the YAML file has factors {list(factors)}; give speeds from 0.5 to 2, such as "
                f"{list(FACTORS)}."
            )
        self.factors = tuple(factors)

    @classmethod
    def from_config_dict(cls, config: dict[str, Any] | None = None) -> "SpeedPerturbation":
        """From the transform's part of the YAML file."""
        return cls((config or {}).get("factors", FACTORS))

    def __call__(self, waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
        """(channels, samples) and their rate, which stays."""
        percent = round(100 * self.factors[np.random.randint(len(self.factors))])
        return resample(torch.from_numpy(waveform), percent, 100).numpy(), sample_rate

    def __repr__(self) -> str:
        return f"SpeedPerturbation(factors={self.factors})"
