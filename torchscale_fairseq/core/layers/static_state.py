"""States of decoding in tensors of fixed place and size, which the steps of a CUDA graph read and write.

A state's own caches become views of these tensors, so that steps with and without a graph may take turns.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cache import DecodingState, KeyValueCache, LayerState
from .retention import RetentionState

LEAST_TOKENS = 64
"""Room for the tokens of a sequence, which doubles when it is used up."""
LARGE = 2**25
"""Bytes of content from which on it pays to ask the device whether an order changes anything."""


class Sizes(NamedTuple):
    """Room in a static state. Few different sizes serve all states, so that some room stays unused."""

    rows: int
    tokens: int
    memory_rows: int
    """0 without an encoder."""
    memory_tokens: int

    @classmethod
    def of(cls, state: DecodingState) -> "Sizes":
        """Room for a state and one more token."""
        rows, memory = state.layers[0].self_attn.batch_size, state.layers[0].encoder_attn
        tokens = _room(state.length + 1, LEAST_TOKENS)
        if memory.batch_size == 0:
            return cls(_room(rows), tokens, 0, 0)
        memory_rows = _room(memory.batch_size)
        beams = rows // memory.batch_size
        return cls(memory_rows * beams, tokens, memory_rows, _room(memory.length, LEAST_TOKENS // 2))

    def serve(self, needed: "Sizes") -> bool:
        """Whether there is room for a state that needs so much, and not more than four times as many rows."""
        fits = all(have >= need for have, need in zip(self, needed, strict=True))
        alike = self.rows * needed.memory_rows == needed.rows * self.memory_rows  # as many beams
        return fits and alike and self.rows <= 4 * needed.rows


def _room(needed: int, least: int = 1) -> int:
    return max(least, 1 << (needed - 1).bit_length())


class Arena:
    """Tensors by name. Those of one name lie in the same memory, so that one user at a time may have them."""

    def __init__(self, device: torch.device):
        self.device = device
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with any content."""
        flat, size = self._flat.get((name, dtype)), math.prod(shape)
        if flat is None or flat.numel() < size:
            flat = self._flat[name, dtype] = torch.zeros(size, dtype=dtype, device=self.device)
        return flat[:size].view(shape)


class StaticMemory:
    """Keys and values of the encoder's output."""

    def __init__(self, arena: Arena, sizes: Sizes, state: DecodingState, dtype: torch.dtype):
        key, _ = state.layers[0].encoder_attn.content()
        shape = (len(state.layers), 2, sizes.memory_rows, key.size(2), sizes.memory_tokens, key.size(3))
        self.content = arena.take("memory", shape, key.dtype)
        self.bias = arena.take("memory_bias", (sizes.memory_rows, 1, 1, sizes.memory_tokens), dtype)
        """Added to scores: -inf where there is nothing to attend to."""

    def caches(self) -> list[KeyValueCache]:
        """One cache per layer of the static step, which shows all of the room."""
        caches = [KeyValueCache() for _ in self.content]
        for cache, (key, value) in zip(caches, self.content, strict=True):
            cache.place(key, value, key.size(2))
        return caches

    def move_in(self, state: DecodingState) -> None:
        """Take a state's memory in."""
        first = state.layers[0].encoder_attn
        rows, length = first.batch_size, first.length
        self.content.zero_()
        self.bias.zero_()
        self.bias[:rows, ..., length:] = -math.inf
        if state.memory_padding_mask is not None:
            padding = state.memory_padding_mask[:, None, None]
            self.bias[:rows, ..., :length].masked_fill_(padding, -math.inf)
        for layer, (key, value) in zip(state.layers, self.content, strict=True):
            _move(layer.encoder_attn, key[:rows], value[:rows])

    def select(self, state: DecodingState, rows: Tensor) -> None:
        """Keep the given rows, in the given order."""
        length = state.layers[0].encoder_attn.length
        _select(self.content, 2, rows)
        _select(self.bias, 0, rows)
        for layer, (key, value) in zip(state.layers, self.content, strict=True):
            layer.encoder_attn.place(key[: rows.numel()], value[: rows.numel()], length)


class StaticState:
    """The base: tokens, memory, and what all kinds of states do.

    Args:
        arena: where tensors are taken from.
        sizes: room for content.
        state: one of those that will move in, for the sizes of its content.
        dtype: of the model.
    """

    def __init__(self, arena: Arena, sizes: Sizes, state: DecodingState, dtype: torch.dtype):
        self.sizes = sizes
        self.tokens = arena.take("tokens", (sizes.rows, 1), torch.long).zero_()
        """The new token of each row."""
        self.memory = StaticMemory(arena, sizes, state, dtype) if sizes.memory_rows else None

    def _layers(self, own: list[Any]) -> list[LayerState]:
        """The static step's layers, given what their self-attention or retention needs."""
        memory = [KeyValueCache() for _ in own] if self.memory is None else self.memory.caches()
        return [LayerState(*pair) for pair in zip(own, memory, strict=True)]

    def holds(self, state: DecodingState) -> bool:
        """Whether the state's content lies here."""
        raise NotImplementedError

    def move_in(self, state: DecodingState) -> None:
        """Take a state in. Its caches are views of this from now on."""
        if self.memory is not None:
            self.memory.move_in(state)
        self._move_in(state)
        state.home = self

    def reorder(self, state: DecodingState, rows: Tensor, memory_rows: Tensor | None) -> bool:
        """Keep the given rows of the state, in the given order, in place. False if they have to go elsewhere.

        Args:
            state: the one that may be held here.
            rows: (new batch,).
            memory_rows: those of the memory; None to keep all as they are.
        """
        count, memory_count = rows.numel(), 0 if memory_rows is None else memory_rows.numel()
        if count > self.sizes.rows or memory_count > self.sizes.memory_rows or not self.holds(state):
            return False
        self._select(state, rows)
        if self.memory is not None and memory_rows is not None:
            self.memory.select(state, memory_rows)
        return True

    def before_step(self, state: DecodingState, tokens: Tensor) -> None:
        """Bring in the next token of each sequence, (batch, 1)."""
        self.tokens[: tokens.size(0)].copy_(tokens)

    def after_step(self, state: DecodingState) -> None:
        """Count the token as seen."""
        state.length += 1

    def _move_in(self, state: DecodingState) -> None:
        raise NotImplementedError

    def _select(self, state: DecodingState, rows: Tensor) -> None:
        raise NotImplementedError


class KeyValueSlots:
    """A static step's cache of one layer: takes in one token and shows all of its room.

    Args:
        key, value: (rows, heads, room, head_dim).
        position: (1,), the new token's.
    """

    def __init__(self, key: Tensor, value: Tensor, position: Tensor):
        self.key = key
        self.value = value
        self.position = position

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (rows, 1, heads, head_dim); return (rows, room, heads, head_dim)."""
        self.key.index_copy_(2, self.position, key.transpose(1, 2).to(self.key.dtype))
        self.value.index_copy_(2, self.position, value.transpose(1, 2).to(self.value.dtype))
        return self.key.transpose(1, 2), self.value.transpose(1, 2)


class StaticKeyValues(StaticState):
    """Keys and values of a decoder with attention.

    Args:
        arena, sizes, state, dtype: as for every kind.
        xpos_scale_base: of a decoder with xPos.
    """

    def __init__(
        self,
        arena: Arena,
        sizes: Sizes,
        state: DecodingState,
        dtype: torch.dtype,
        *,
        xpos_scale_base: int | None,
    ):
        super().__init__(arena, sizes, state, dtype)
        self._xpos_scale_base = xpos_scale_base
        key, _ = state.layers[0].self_attn.content()
        shape = (len(state.layers), 2, sizes.rows, key.size(2), sizes.tokens, key.size(3))
        self.content = arena.take("content", shape, key.dtype)
        self.position = arena.take("position", (1,), torch.long).zero_()
        self.xpos_centre = arena.take("xpos_centre", (1,), torch.long).zero_()
        self.layers = self._layers([KeyValueSlots(key, value, self.position) for key, value in self.content])
        self._held: Tensor | None = None

    def holds(self, state: DecodingState) -> bool:
        """Whether the state's content lies here."""
        return self._held is not None and state.home is self and state.layers[0].self_attn.lies_in(self._held)

    def before_step(self, state: DecodingState, tokens: Tensor) -> None:
        """Bring in the next token of each sequence, and its position."""
        super().before_step(state, tokens)
        self.position.fill_(state.length)
        if self._xpos_scale_base is not None:
            self.xpos_centre.fill_(state.xpos_centre_for(state.length + 1, self._xpos_scale_base))

    def after_step(self, state: DecodingState) -> None:
        """Count the token as seen."""
        super().after_step(state)
        for layer in state.layers:
            layer.self_attn.length += 1

    def _move_in(self, state: DecodingState) -> None:
        self.content.zero_()  # unused room has no weight, but NaN times zero is NaN
        rows = state.layers[0].self_attn.batch_size
        for layer, (key, value) in zip(state.layers, self.content, strict=True):
            _move(layer.self_attn, key[:rows], value[:rows])
        self._hold(state, rows)

    def _select(self, state: DecodingState, rows: Tensor) -> None:
        used = self.content[..., : state.length, :]
        if _stay(rows, state, rows.numel() * used[:, :, 0].nbytes):
            return
        _select(used, 2, rows)
        if rows.numel() != state.layers[0].self_attn.batch_size:
            self._hold(state, rows.numel())

    def _hold(self, state: DecodingState, rows: int) -> None:
        for layer, (key, value) in zip(state.layers, self.content, strict=True):
            placed = key[:rows]
            layer.self_attn.place(placed, value[:rows], state.length)
            self._held = placed if layer is state.layers[0] else self._held


class StaticRetention(StaticState):
    """The state of a RetNet."""

    def __init__(self, arena: Arena, sizes: Sizes, state: Any, dtype: torch.dtype):
        super().__init__(arena, sizes, state, dtype)
        content = state.layers[0].self_attn.content
        self.content = arena.take("content", (len(state.layers), sizes.rows, *content.shape[1:]), content.dtype)
        self.seen = arena.take("seen", (sizes.rows,), torch.long).zero_()
        """Tokens of each sequence so far."""
        states = [RetentionState() for _ in state.layers]
        for own, part in zip(states, self.content, strict=True):
            own.content = part
        self.layers = self._layers(states)
        self._held: tuple[Tensor, Tensor] | None = None

    def holds(self, state: Any) -> bool:
        """Whether the state's content lies here."""
        return (
            self._held is not None
            and state.home is self
            and state.layers[0].self_attn.content is self._held[0]
            and state.seen is self._held[1]
        )

    def _move_in(self, state: Any) -> None:
        rows = state.layers[0].self_attn.batch_size
        for layer, part in zip(state.layers, self.content, strict=True):
            part[:rows] = layer.self_attn.content
        self.seen[:rows] = state.seen
        self._hold(state, rows)

    def _select(self, state: Any, rows: Tensor) -> None:
        if _stay(rows, state, rows.numel() * self.content[:, 0].nbytes):
            return
        _select(self.content, 1, rows)
        _select(self.seen, 0, rows)
        if rows.numel() != state.layers[0].self_attn.batch_size:
            self._hold(state, rows.numel())

    def _hold(self, state: Any, rows: int) -> None:
        for layer, part in zip(state.layers, self.content, strict=True):
            layer.self_attn.content = part[:rows]
        state.seen = self.seen[:rows]
        self._held = state.layers[0].self_attn.content, state.seen


def move_out(state: Any) -> None:
    """Give a state memory of its own again, if any of its content may lie in a static state."""
    if state.home is None:
        return
    state.home = None
    for layer in state.layers:
        for cache in (layer.self_attn, layer.encoder_attn):
            if isinstance(cache, RetentionState):
                assert cache.content is not None
                cache.content = cache.content.clone()
            elif cache.length:
                key, value = (x.transpose(1, 2).clone() for x in cache.content())
                cache.place(key, value, cache.length)
    if getattr(state, "seen", None) is not None:
        state.seen = state.seen.clone()


def _move(cache: KeyValueCache, key: Tensor, value: Tensor) -> None:
    """Copy a cache into other buffers, which it uses from now on."""
    old_key, old_value = cache.content()
    key[:, :, : cache.length] = old_key.transpose(1, 2)
    value[:, :, : cache.length] = old_value.transpose(1, 2)
    cache.place(key, value, cache.length)


def _stay(rows: Tensor, state: DecodingState, nbytes: int) -> bool:
    """Whether an order is known to keep every row of a state in its place; asked of the device for large content.

    Sampling moves nothing until a sentence ends, and moving rows reads and writes all of them twice.
    """
    return (
        nbytes > LARGE
        and rows.numel() == state.layers[0].self_attn.batch_size
        and torch.equal(rows, torch.arange(rows.numel(), device=rows.device))
    )


def _select(content: Tensor, axis: int, rows: Tensor) -> None:
    """Put the given rows of an axis first, in the given order."""
    content.narrow(axis, 0, rows.numel()).copy_(content.index_select(axis, rows))
