"""The cache of incremental decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops.masks import marked
from ..ops.xpos import decay_factors

_KEY_IN_INCREMENTAL_STATE = "decoding_state"
_XPOS_RECENTRE_DISTANCE = 2048


class KeyValueCache:
    """Keys and values of the tokens seen so far, in buffers that double when they are full.

    Buffers are (batch, heads, capacity, head_dim), so that each head's keys lie together.
    """

    def __init__(self) -> None:
        self.length = 0
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (batch, seq, heads, head_dim) and return all so far, in that layout."""
        start, self.length = self.length, self.length + key.size(1)
        self._key = _grown(self._key, key, start, self.length)
        self._value = _grown(self._value, value, start, self.length)
        self._key[:, :, start : self.length] = key.transpose(1, 2)
        self._value[:, :, start : self.length] = value.transpose(1, 2)
        return self.content()

    def content(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, (batch, length, heads, head_dim)."""
        assert self._key is not None and self._value is not None
        return self._key[:, :, : self.length].transpose(1, 2), self._value[:, :, : self.length].transpose(1, 2)

    def drop(self, tokens: int) -> None:
        """Forget the newest tokens."""
        self.length -= tokens

    def place(self, key: Tensor, value: Tensor, length: int) -> None:
        """Use these buffers, (batch, heads, capacity, head_dim), which hold ``length`` tokens, from now on."""
        self._key, self._value, self.length = key, value, length

    def lies_in(self, key: Tensor) -> bool:
        """Whether this is the buffer of keys that was placed last, and no other has taken its place since."""
        return self._key is key

    def decay_keys(self, distance: float) -> None:
        """Move the centre of xPos's scale on by ``distance`` in units of its base."""
        if self._key is not None:
            decay_keys(self._key[:, :, : self.length], distance)

    def select(self, rows: Tensor) -> None:
        """Keep the given batch rows, in the given order."""
        if self._key is not None and self._value is not None:
            self._key = _selected(self._key, rows, self.length)
            self._value = _selected(self._value, rows, self.length)

    @property
    def batch_size(self) -> int:
        """Rows held."""
        return 0 if self._key is None else self._key.size(0)


def _grown(buffer: Tensor | None, new: Tensor, used: int, needed: int) -> Tensor:
    if buffer is None:
        return new.new_empty(new.size(0), new.size(2), needed, new.size(3))
    if needed <= buffer.size(2):
        return buffer
    larger = buffer.new_empty(*buffer.shape[:2], max(needed, 2 * buffer.size(2)), buffer.size(3))
    larger[:, :, :used] = buffer[:, :, :used]
    return larger


def decay_keys(key: Tensor, distance: float) -> None:
    """Shrink keys (..., head_dim) in place as xPos has it, ``distance`` in units of its base."""
    wide = torch.promote_types(key.dtype, torch.float32)
    factors = decay_factors(key.size(-1), wide, key.device) ** distance
    key *= factors.repeat_interleave(2).to(key.dtype)


def _selected(buffer: Tensor, rows: Tensor, used: int) -> Tensor:
    chosen = buffer.new_empty(rows.size(0), *buffer.shape[1:])
    torch.index_select(buffer[:, :, :used], 0, rows, out=chosen[:, :, :used])
    return chosen


@dataclass(frozen=True)
class LayerState:
    """The cache of one layer between decoding steps; empty outside of decoding."""

    self_attn: Any = None
    """As the layer's self-attention, or retention, needs it."""
    encoder_attn: Any = None
    """A KeyValueCache."""


NO_STATE = LayerState()


class DecodingState:
    """All that a decoder remembers of a batch of sequences."""

    def __init__(self, num_layers: int, new_cache: Callable[[], Any] = KeyValueCache) -> None:
        self.layers = [LayerState(new_cache(), KeyValueCache()) for _ in range(num_layers)]
        self.length = 0
        self.padding_mask: Tensor | None = None
        """(batch, length), True for padding, or None where there is none."""
        self.memory_padding_mask: Tensor | None = None
        """Keys and values of the encoder's output."""
        self.xpos_centre: int | None = None
        self.home: Any = None
        """A static_state.StaticState that holds the content of the layers, or held it last; None without recorded
        steps."""

    @classmethod
    def of(cls, incremental_state: dict[Any, Any], *arguments: Any) -> DecodingState:
        """The state kept in a caller's dictionary, made of the arguments on first use."""
        if _KEY_IN_INCREMENTAL_STATE not in incremental_state:
            incremental_state[_KEY_IN_INCREMENTAL_STATE] = cls(*arguments)
        state: DecodingState = incremental_state[_KEY_IN_INCREMENTAL_STATE]
        return state

    def as_incremental_state(self) -> dict[Any, Any]:
        """A caller's dictionary that holds this state."""
        return {_KEY_IN_INCREMENTAL_STATE: self}

    def extend_padding_mask(self, padding_mask: Tensor | None, new_tokens: int) -> Tensor | None:
        """Mask of all tokens, old and new; remembered.

        Args:
            padding_mask: of all tokens, of the new ones, or None for no padding among the new ones.
            new_tokens: number of new tokens.
        """
        padding_mask = marked(padding_mask)
        if padding_mask is None and self.padding_mask is None:
            return None
        if padding_mask is None:
            assert self.padding_mask is not None
            padding_mask = self.padding_mask.new_zeros(self.padding_mask.size(0), new_tokens)
        if padding_mask.size(1) == new_tokens and self.length > 0:
            past = self.padding_mask
            if past is None:
                past = padding_mask.new_zeros(padding_mask.size(0), self.length)
            padding_mask = torch.cat((past, padding_mask), 1)
        self.padding_mask = padding_mask
        return padding_mask

    def xpos_centre_for(self, total_length: int, scale_base: int) -> int:
        """Position at which xPos scales nothing; moved on, with the cached keys, as the sequence grows.

        Old keys shrink when it moves, as their scores with later queries do, so that nothing overflows.
        """
        newest = total_length - 1
        if self.xpos_centre is None:
            self.xpos_centre = newest
        elif newest - self.xpos_centre > _XPOS_RECENTRE_DISTANCE:
            distance, self.xpos_centre = newest - self.xpos_centre, newest
            for layer in self.layers:
                layer.self_attn.decay_keys(distance / scale_base)
        return self.xpos_centre

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order; what belongs to the encoder's rows follows."""
        batch_size = self.layers[0].self_attn.batch_size
        memory_size = self.layers[0].encoder_attn.batch_size
        memory_rows = rows_of_groups(rows, batch_size, memory_size) if memory_size else None
        if self.home is None or not self.home.reorder(self, rows, memory_rows):
            self._select(rows, memory_rows)
        if self.padding_mask is not None:
            self.padding_mask = self.padding_mask.index_select(0, rows)
        if self.memory_padding_mask is not None and memory_rows is not None:
            self.memory_padding_mask = self.memory_padding_mask.index_select(0, memory_rows)

    def _select(self, rows: Tensor, memory_rows: Tensor | None) -> None:
        for layer in self.layers:
            layer.self_attn.select(rows)
            if memory_rows is not None:
                layer.encoder_attn.select(memory_rows)


def reorder_incremental_state(incremental_state: dict[Any, Any], rows: Tensor) -> None:
    """Reorder the state in a caller's dictionary, if there is one yet."""
    state: DecodingState | None = incremental_state.get(_KEY_IN_INCREMENTAL_STATE)
    if state is not None:
        state.reorder(rows)


def rows_of_groups(rows: Tensor, batch_size: int, groups: int) -> Tensor | None:
    """How groups of neighbouring rows (the beams of a sentence) move when their rows do.

    Args:
        rows: new order of ``batch_size`` rows.
        batch_size: rows before.
        groups: number of groups before, each of batch_size / groups rows.

    Returns:
        The groups to keep, in order, or None where none moves. Where rows leave their group's place, as when
        the caller mixes sentences, one group per row.
    """
    size = batch_size // groups
    group_of_row = rows // size
    if rows.numel() == batch_size:
        in_place = torch.arange(groups, device=rows.device).repeat_interleave(size)
        if torch.equal(group_of_row, in_place):  # the usual case, with one wait for the device
            return None
    if rows.numel() % size == 0:
        by_place = group_of_row.view(-1, size)
        if bool((by_place == by_place[:, :1]).all()):
            kept = by_place[:, 0]
            unmoved = kept.numel() == groups and bool((kept == torch.arange(groups, device=kept.device)).all())
            return None if unmoved else kept
    return group_of_row
