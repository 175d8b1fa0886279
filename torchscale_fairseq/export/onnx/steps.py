"""Steps of decoding: from new tokens and the state of earlier ones to logits and the new state."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.retnet import RetNetDecoder, RetNetLayer, RetNetState
from torchscale_fairseq.core.layers.cache import DecodingState, LayerState

from .inputs import BATCH, LENGTH, MEMORY_PADDING, NEW, PAST, Input


class KeptKeyValues:
    """A layer's keys and values as tensors, (batch, heads, length, head_dim), as a graph takes and returns them."""

    def __init__(self, key: Tensor, value: Tensor):
        self.key = key
        self.value = value

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.key.size(2)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (batch, new, heads, head_dim); return all, in that layout."""
        self.key = torch.cat((self.key, key.transpose(1, 2)), 2)
        self.value = torch.cat((self.value, value.transpose(1, 2)), 2)
        return self.content()

    def content(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (batch, length, heads, head_dim)."""
        return self.key.transpose(1, 2), self.value.transpose(1, 2)


class _AttentionState(DecodingState):
    """The state of a decoder with attention, from a graph's inputs."""

    def __init__(self, layers: list[LayerState], length: int, memory_padding_mask: Tensor | None):
        super().__init__(0)
        self.layers = layers
        self.length = length
        self.memory_padding_mask = memory_padding_mask

    def xpos_centre_for(self, total_length: int, scale_base: int) -> int:
        """Always the first token, so that kept keys stay as they are."""
        return 0


class AttentionStep(nn.Module):
    """A step of a ``Decoder``; its state is keys and values, (batch, heads, past, head_dim), of each layer."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def state_inputs(self) -> dict[str, Input]:
        """Examples of the state."""
        return _kept("", self.decoder, PAST, "past")

    def inputs(self) -> dict[str, Input]:
        """Examples of all but the memory."""
        padding = torch.zeros(BATCH, PAST + NEW, dtype=torch.bool)
        return {**_tokens(), "padding_mask": Input(padding, {0: "batch", 1: "past + new"}), **self.state_inputs()}

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Logits (batch, new, vocabulary), and the new state.

        Args:
            tensors: tokens (batch, new); padding_mask (batch, past + new), True for padding; the state; and keys,
                values and mask of the memory, if there is one.
        """
        count = len(self.decoder.layers)
        memory = _memory(tensors, count)
        kept = [KeptKeyValues(tensors[f"key.{layer}"], tensors[f"value.{layer}"]) for layer in range(count)]
        layers = [LayerState(*pair) for pair in zip(kept, memory, strict=True)]
        held = _AttentionState(layers, kept[0].length, tensors.get(MEMORY_PADDING))
        whole = F.pad(tensors["tokens"], (held.length, 0))  # as the decoder takes them; it reads the new ones alone
        logits, _ = self.decoder(
            whole, tensors["padding_mask"], _encoder_out(tensors), incremental_state=held.as_incremental_state()
        )
        return logits, *(cache.key for cache in kept), *(cache.value for cache in kept)


class RetentionStep(nn.Module):
    """A step of a ``RetNetDecoder``; its state is one matrix per head and layer, (batch, heads, key_dim, value_dim),
    and the number of tokens that each row has seen."""

    def __init__(self, decoder: RetNetDecoder):
        super().__init__()
        self.decoder = decoder

    def state_inputs(self) -> dict[str, Input]:
        """Examples of the state."""
        config, first = self.decoder.config, cast(RetNetLayer, self.decoder.layers[0])
        heads = config.decoder_retention_heads
        widths = (
            config.decoder_embed_dim // heads,
            config.decoder_value_embed_dim // heads + first.retention.clamp_scores,
        )
        matrices = {
            f"state.{layer}": Input(torch.zeros(BATCH, heads, *widths), {0: "batch"})
            for layer in range(len(self.decoder.layers))
        }
        return {"seen": Input(torch.full((BATCH,), PAST), {0: "batch"}), **matrices}

    def inputs(self) -> dict[str, Input]:
        """Examples of all but the memory."""
        padding = torch.zeros(BATCH, NEW, dtype=torch.bool)
        return {**_tokens(), "padding_mask": Input(padding, {0: "batch", 1: "new"}), **self.state_inputs()}

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Logits (batch, new, vocabulary), and the new state.

        Args:
            tensors: tokens (batch, new); padding_mask (batch, new), True for padding; the state; and keys, values and
                mask of the memory, if there is one.
        """
        count = len(self.decoder.layers)
        held = RetNetState(count)
        held.seen = tensors["seen"]
        retention = [layer.self_attn for layer in held.layers]
        for layer, kept in enumerate(retention):
            kept.content = tensors[f"state.{layer}"]
        held.layers = [LayerState(*pair) for pair in zip(retention, _memory(tensors, count), strict=True)]
        logits, _ = self.decoder(
            tensors["tokens"],
            self_attn_padding_mask=tensors["padding_mask"],
            encoder_out=_encoder_out(tensors),
            incremental_state=held.as_incremental_state(),
        )
        return logits, held.seen, *(kept.content for kept in retention)


def memory_inputs(decoder: Decoder | RetNetDecoder) -> dict[str, Input]:
    """Examples of what a decoder's layers attend to of the source."""
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    return {
        **_kept("memory_", decoder, LENGTH, "length"),
        MEMORY_PADDING: Input(padding, {0: "batch", 1: "length"}),
    }


def _tokens() -> dict[str, Input]:
    return {"tokens": Input(torch.full((BATCH, NEW), 4), {0: "batch", 1: "new"})}


def _kept(prefix: str, decoder: Any, length: int, axis: str) -> dict[str, Input]:
    """Keys of all layers, then values."""
    layer = decoder.layers[0]
    heads = (layer.encoder_attn if prefix else layer.self_attn).num_heads
    example = torch.zeros(BATCH, heads, length, decoder.spec.width // heads)
    names = [f"{prefix}{part}.{index}" for part in ("key", "value") for index in range(len(decoder.layers))]
    return {name: Input(example.clone(), {0: "batch", 2: axis}) for name in names}


def _memory(tensors: dict[str, Tensor], layers: int) -> list[KeptKeyValues | None]:
    if MEMORY_PADDING not in tensors:
        return [None] * layers
    return [KeptKeyValues(tensors[f"memory_key.{layer}"], tensors[f"memory_value.{layer}"]) for layer in range(layers)]


def _encoder_out(tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """The encoder's output as far as a decoder reads it that has kept keys and values of it: its size and mask."""
    if MEMORY_PADDING not in tensors:
        return None
    return {"encoder_out": tensors["memory_key.0"][:, 0], "encoder_padding_mask": tensors[MEMORY_PADDING]}
