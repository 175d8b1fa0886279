"""How fast a run is: tokens per second and model FLOPs per device, and their share of what the device could do."""

import logging
import re
from collections.abc import Iterable
from typing import Any

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.stack import Stack
from torchscale_fairseq.core.config import SpeechOptions
from torchscale_fairseq.core.flops import Load, training_flops
from torchscale_fairseq.core.ops.positions import PADDING_POSITION
from torchscale_fairseq.hooks.contracts import sides_of

logger = logging.getLogger(__name__)

PEAK_TFLOPS: dict[str, tuple[float, float]] = {
    "H100 NVL": (835, 60),
    "H100 PCIe": (756, 51),
    "H100": (989, 67),
    "H200": (989, 67),
    "A100": (312, 19.5),
    "A40": (149.7, 37.4),
    "L40S": (362, 91.6),
    "L4": (121, 30.3),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
}
"""By a part of the GPU's name, in half precision (tensor cores, no sparsity) and in float32 (without TF32), from the
vendor's data sheets."""


class SpeedMeter:
    """Logs, next to fairseq's own figures, ``tps_device`` (tokens per second), ``tflops`` (model TFLOP/s, see
    ``core/flops.py``) and ``mfu`` (their share of the peak rate), each averaged over the devices of a run.

    Args:
        config: the core's, of the model.
        peak: FLOP/s of a device; None if it is not known, and there is no ``mfu``.
    """

    def __init__(self, config: Any, peak: float | None):
        self.config = config
        self.peak = peak
        self._reads_text = False

    def measure(self, samples: Iterable[dict[str, Any] | None], *, shared_by: int = 1) -> list[float]:
        """Tokens and model FLOPs of an update on these batches; zeros if they are not text.

        Args:
            samples: the batches.
            shared_by: processes that compute an equal part of each.
        """
        given = [sample for sample in samples if sample]
        if not all("ntokens" in sample and "src_tokens" in sample.get("net_input", ()) for sample in given):
            return [0.0, 0.0]
        self._reads_text |= bool(given)
        tokens = sum(float(sample["ntokens"]) for sample in given)
        return [tokens / shared_by, sum(self.flops(sample) for sample in given) / shared_by]

    def log(self, tokens: float | Tensor, flops: float | Tensor) -> None:
        """Log an update of a device, if the model reads text.

        Args:
            tokens: number of tokens read; here and below a tensor where the device need not be waited for.
            flops: model FLOPs computed.
        """
        if not self._reads_text:
            return
        metrics.log_speed("tps_device", tokens, priority=191, round=1)
        metrics.log_speed("tflops", flops / 1e12, priority=192, round=3)
        if self.peak is not None:
            metrics.log_speed("mfu", flops / self.peak, priority=193, round=3)

    def flops(self, sample: dict[str, Any]) -> float:
        """Model FLOPs of an update on this batch."""
        inputs = sample["net_input"]
        speech = isinstance(self.config, SpeechOptions)
        frames = tuple(map(self.config.frames, inputs["src_lengths"].tolist())) if speech else ()
        source = tuple(map(self.config.shortened, frames)) if speech else _lengths(inputs["src_tokens"])
        target = _lengths(inputs["prev_output_tokens"]) if "prev_output_tokens" in inputs else source
        predicted = sample.get("target")
        has_encoder, has_decoder = (side in self.config.sides for side in ("encoder", "decoder"))
        return training_flops(
            self.config,
            encoder=Load(source) if has_encoder else None,
            decoder=Load(target) if has_decoder else None,
            predictions=0 if predicted is None else int(predicted.ne(PADDING_POSITION).sum()),
            pairs=sum(s * t for s, t in zip(source, target, strict=True)) if has_encoder and has_decoder else 0,
            frames=sum(frames),
        )


def _lengths(tokens: Tensor) -> tuple[int, ...]:
    return tuple(tokens.ne(PADDING_POSITION).sum(1).tolist())


def speed_meter(model: nn.Module, device: torch.device, peak_tflops: float | None, *, half: bool) -> SpeedMeter | None:
    """The meter of a model of this package; None for others. Says what utilisation is relative to.

    Args:
        model: in training.
        device: where it trains.
        peak_tflops: as the user says; None to look it up.
        half: whether the model computes in half precision.
    """
    stacks = [side for side in reversed(sides_of(model).values()) if isinstance(side, Stack)]
    if not stacks:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    precision = "half precision" if half else "float32"
    peak = peak_tflops or known_peak(name, half=half)
    if peak is None:
        logger.info(
            f"model FLOPs utilisation (mfu) is not logged: the peak rate of this device ({name}, {precision}) is not "
            "known; give it with --peak-tflops (python -m benchmarks.compare train says the rate of a matrix product)"
        )
    else:
        logger.info(f"model FLOPs utilisation (mfu) is relative to {peak:g} TFLOP/s ({name}, {precision})")
    return SpeedMeter(stacks[0].config, None if peak is None else peak * 1e12)


def known_peak(device: str, *, half: bool) -> float | None:
    """Peak rate of a device in TFLOP/s; None if it is not known.

    Args:
        device: name, as ``torch.cuda.get_device_name`` returns it.
        half: of float16 and bfloat16, not of float32.
    """
    for name, (in_half, in_float32) in PEAK_TFLOPS.items():
        if re.search(rf"\b{name}\b", device):
            return in_half if half else in_float32
    return None
