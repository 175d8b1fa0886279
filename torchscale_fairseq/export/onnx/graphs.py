"""A model as one or two graphs: an encoder, and a step of decoding."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.beit3 import BEiT3
from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.encoder import Encoder
from torchscale_fairseq.core.architectures.encoder_decoder import EncoderDecoder
from torchscale_fairseq.core.architectures.longvit import LongViTClassifier
from torchscale_fairseq.core.architectures.retnet import RetNetDecoder
from torchscale_fairseq.export.encoding import encode

from .inputs import BATCH, LENGTH, MEMORY_PADDING, Input
from .steps import AttentionStep, RetentionStep, memory_inputs


@dataclass(frozen=True)
class Graph:
    """A part of a model that becomes a file.

    Args:
        module: takes a dictionary of tensors and returns tensors.
        inputs: that dictionary.
        outputs: names, in the module's order.
    """

    module: nn.Module
    inputs: dict[str, Input]
    outputs: list[str]


def graphs_of(core: nn.Module) -> dict[str, Graph]:
    """The graphs of a model that ``requirements.refuse`` lets pass, by the names of their files."""
    if isinstance(core, Encoder):
        return {"encoder": Graph(TextEncoder(core), _text(), ["logits"])}
    if isinstance(core, LongViTClassifier):
        return {
            "encoder": Graph(ImageClassifier(core), _images(core.model.config, 1), ["logits"])
        }  # dilated attention fixes it
    if isinstance(core, BEiT3):
        return {"encoder": Graph(PairEncoder(core), _text() | _images(core.config), ["features"])}
    if isinstance(core, EncoderDecoder):
        source, memory = SourceEncoder(core), memory_inputs(core.decoder)
        names = [name for name in memory if name != MEMORY_PADDING]
        return {"encoder": Graph(source, _text(), names), "step": _step(core.decoder, memory)}
    assert isinstance(core, (Decoder, RetNetDecoder))
    return {"step": _step(core, {})}


def _step(decoder: Decoder | RetNetDecoder, memory: dict[str, Input]) -> Graph:
    step = RetentionStep(decoder) if isinstance(decoder, RetNetDecoder) else AttentionStep(decoder)
    outputs = ["logits", *(f"new_{name}" for name in step.state_inputs())]
    return Graph(step, step.inputs() | memory, outputs)


class TextEncoder(nn.Module):
    """Logits (batch, seq, vocabulary) of an encoder with an output projection."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        """Encode tokens (batch, seq) with padding_mask (batch, seq), True for padding."""
        logits: Tensor = encode(self.encoder, **tensors)["encoder_out"]
        return logits


class ImageClassifier(nn.Module):
    """Scores (batch, classes) of a LongViT."""

    def __init__(self, model: LongViTClassifier):
        super().__init__()
        self.model = model

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        """Score images (batch, channels, height, width)."""
        scores: Tensor = self.model(**tensors)
        return scores


class PairEncoder(nn.Module):
    """Features (batch, 1 + patches + words, width) of a BEiT-3."""

    def __init__(self, model: BEiT3):
        super().__init__()
        self.model = model

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        """Encode tokens (batch, words), padding_mask, True for padding, and images (batch, channels, height, width)."""
        out = self.model(tensors["tokens"], tensors["images"], tensors["padding_mask"])
        features: Tensor = out["encoder_out"]
        return features


class SourceEncoder(nn.Module):
    """Keys of the source that each layer of a decoder attends to, then the values, (batch, heads, seq, head_dim)."""

    def __init__(self, model: EncoderDecoder):
        super().__init__()
        self.model = model

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Encode tokens (batch, seq) with padding_mask (batch, seq), True for padding."""
        memory = encode(self.model.encoder, **tensors)["encoder_out"]
        layers: list[Any] = list(self.model.decoder.layers)
        pairs = [layer.encoder_attn.keys_and_values(memory) for layer in layers]
        return tuple(x.transpose(1, 2) for part in zip(*pairs, strict=True) for x in part)


def _text() -> dict[str, Input]:
    axes = {0: "batch", 1: "length"}
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    return {"tokens": Input(torch.full((BATCH, LENGTH), 4), axes), "padding_mask": Input(padding, axes)}


def _images(config: Any, batch: int = BATCH) -> dict[str, Input]:
    example = torch.zeros(batch, config.in_chans, config.img_size, config.img_size)
    return {"images": Input(example, {0: "batch"} if batch > 1 else {})}
