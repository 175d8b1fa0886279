"""The convolutional front end that shortens sequences of speech features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_KEPT_BY_GATE = 0.293
"""Share of the variance that a gated linear unit leaves: the mean squared sigmoid of a standard normal variable."""


class ConvolutionalSubsampler(nn.Module):
    """Convolutions over time, each with stride 2 and a gated linear unit.

    "End-to-end ASR: from Supervised to Semi-Supervised Learning with Modern Architectures", arXiv:1911.08460, sec. 3.1;
    parameters have the names of fairseq's Conv1dSubsampler. Each layer's padding is set to zero before the next layer
    reads it, so that a row's output does not depend on the longer rows of its batch.

    Args:
        channels: of the features.
        inner_channels: between two convolutions, before the gate halves them.
        width: channels of the output.
        kernel_sizes: in frames, odd, one per convolution.
    """

    def __init__(self, channels: int, inner_channels: int, width: int, kernel_sizes: Sequence[int]):
        super().__init__()
        inputs = [channels] + [inner_channels // 2] * (len(kernel_sizes) - 1)
        outputs = [inner_channels] * (len(kernel_sizes) - 1) + [2 * width]
        layers = [
            nn.Conv1d(i, o, size, stride=2, padding=size // 2)
            for i, o, size in zip(inputs, outputs, kernel_sizes, strict=True)
        ]
        self.conv_layers = nn.ModuleList(layers)
        initialize_convolutions(layers)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Shorten a batch.

        Args:
            features: (batch, frames, channels); what lies behind a row's length is not read.
            lengths: (batch,), frames of each row.

        Returns:
            (batch, shorter frames, width), and the lengths of its rows.
        """
        x = features.transpose(1, 2)
        for conv in self.conv_layers:
            x = nn.functional.glu(conv(x.masked_fill(frame_padding(lengths, x.size(2)).unsqueeze(1), 0.0)), dim=1)
            lengths = (lengths + 1).div(2, rounding_mode="floor")
        return x.transpose(1, 2), lengths


@torch.no_grad()
def initialize_convolutions(layers: Sequence[nn.Conv1d]) -> None:
    """Draw values that keep the variance of features, 1, from layer to layer; the last one's outputs have that of token
    embeddings, 1 / width. nn.Conv1d's own values would leave less with each layer.

    Args:
        layers: convolutions, each in front of a gated linear unit.
    """
    for layer in layers:
        weight, bias = layer.parameters()
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        nn.init.zeros_(bias)
        values, _ = weight.chunk(2)
        values.mul_(_KEPT_BY_GATE**-0.5)
    values.mul_(len(values) ** -0.5)


def frame_padding(lengths: Tensor, frames: int) -> Tensor:
    """(batch, frames), True behind the end of each row.

    Args:
        lengths: (batch,), frames of each row.
        frames: of the batch.
    """
    return torch.arange(frames, device=lengths.device) >= lengths.unsqueeze(1)
