"""Steps of decoding as CUDA graphs.

A step for one new token starts a few hundred small kernels, which a GPU finishes faster than Python can start them. A
CUDA graph starts all of them at once. It holds for one size of the state and for fixed memory, so that states move into
memory that has room for more than they need (``layers.static_state``).
"""

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.attention import MultiheadAttention
from ..layers.cache import DecodingState
from ..layers.dilated_attention import DilatedAttention
from ..layers.hooked import is_hooked
from ..layers.moe import MixtureOfExperts
from ..layers.static_state import Arena, Sizes, StaticState, move_out
from ..ops.masks import marked
from ..ops.side_by_side import with_sides

logger = logging.getLogger(__name__)

MOST = 32
"""Recorded sizes at a time; the one recorded first gives way."""
Replay = Callable[[], Tensor]
"""Runs a recorded step; returns its logits, which the next one overwrites."""


class StepGraphs:
    """The recorded steps of a decoder.

    A decoder has them recorded if each of its steps is the same for all tokens, which experts and dilated attention are
    not, and if nothing looks at what its modules compute. All other steps run as usual.

    Args:
        record: makes a replay of a step, as ``cuda_graph`` does, which is the default.
    """

    def __init__(self, record: Callable[[Callable[[], Tensor], Any], Replay] | None = None):
        self._record_step = record
        self._arena: Arena | None = None
        self._pool: Any = None
        self._recorded: dict[Sizes, tuple[StaticState, Replay]] = {}
        self._made_of: tuple[list[int], list[type[nn.Module]]] = [], []
        """Where the decoder's weights lie, and the classes of its modules."""
        self._owner: Callable[[], DecodingState | None] = lambda: None
        self._stopped = False

    def __reduce__(self) -> tuple[Any, ...]:
        return StepGraphs, (self._record_step,)  # a copy of a model records its own

    @property
    def recorded(self) -> int:
        """Sizes that are recorded."""
        return len(self._recorded)

    def step(self, decoder: Any, state: DecodingState, tokens: Tensor, padding_mask: Tensor | None) -> Tensor | None:
        """Logits (batch, 1, vocabulary) of the next token of each sequence, or None to compute them as usual.

        Args:
            decoder: has ``static_state`` and ``static_step``.
            state: of earlier tokens; takes in these.
            tokens: (batch, 1).
            padding_mask: of all tokens or the new ones; steps after or with padding are not recorded.
        """
        if self._stopped or not self._serves(decoder, state, tokens) or marked(padding_mask) is not None:
            return None
        needed = Sizes.of(state)
        settled = state.home is not None and state.home.holds(state) and state.home.sizes.serve(needed)
        if not settled and not (_is_recordable(decoder) and self._move(decoder, state, needed)):
            return None
        return self._replay(state, tokens)

    def _serves(self, decoder: Any, state: DecodingState, tokens: Tensor) -> bool:
        """Whether cheap checks allow a recorded step. They look at neither the device nor modules."""
        owner, rows = self._owner(), state.layers[0].self_attn.batch_size
        memory_rows = state.layers[0].encoder_attn.batch_size
        return (
            (tokens.is_cuda or self._record_step is not None)
            and state.length > 0
            and rows == tokens.size(0)
            and (memory_rows == 0 or rows % memory_rows == 0)
            and state.padding_mask is None
            and state.length < decoder.position_limit
            and (owner is None or owner is state)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(tokens.device.type)
        )

    def _replay(self, state: DecodingState, tokens: Tensor) -> Tensor:
        static, replay = self._recorded[state.home.sizes]
        static.before_step(state, tokens)
        logits = replay()[: tokens.size(0)].clone()
        static.after_step(state)
        return logits

    def _move(self, decoder: Any, state: DecodingState, needed: Sizes) -> bool:
        """Move a state to where a recorded step works. False if there is no memory for that."""
        move_out(state)
        weights = [x.data_ptr() for x in (*decoder.parameters(), *decoder.buffers())]
        made_of = weights, [type(module) for module in decoder.modules()]
        if made_of != self._made_of:
            self._recorded.clear()
            self._made_of = made_of
        if needed not in self._recorded:
            while len(self._recorded) >= MOST:
                del self._recorded[next(iter(self._recorded))]
            try:
                self._record(decoder, state, needed)
            except RuntimeError as error:  # most likely of memory
                logger.warning(f"a step cannot be recorded as a CUDA graph; decoding goes on without: {error}")
                self._recorded.clear()
                self._arena, self._stopped = None, True
                return False
        self._recorded[needed][0].move_in(state)
        self._owner = weakref.ref(state)
        return True

    def _record(self, decoder: Any, state: DecodingState, sizes: Sizes) -> None:
        device = next(decoder.parameters()).device
        with torch.inference_mode(False), torch.no_grad():
            self._arena = self._arena or Arena(device)
            static = decoder.static_state(self._arena, sizes, state)
            if self._record_step is None and self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            replay = (self._record_step or cuda_graph)(lambda: decoder.static_step(static), self._pool)
        self._recorded[sizes] = static, replay


def _is_recordable(decoder: Any) -> bool:
    """Whether a step of one token is a fixed sequence of kernels that nothing watches."""
    for module in decoder.modules():
        if isinstance(module, MixtureOfExperts | DilatedAttention) or module.training:
            return False
        if isinstance(module, MultiheadAttention) and module.backend not in ("sdpa", "naive"):
            return False
        if is_hooked(module):
            return False
    parts = decoder.embed_tokens, decoder.output_projection
    return None not in parts and getattr(decoder, "cross_attn_relative_position", None) is None


def cuda_graph(step: Callable[[], Tensor], pool: Any) -> Replay:
    """Record a step.

    Args:
        step: computes from tensors that stay where they are.
        pool: of memory, which graphs may share that run one after the other.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for every shape
    try:
        with torch.cuda.stream(stream), with_sides():
            step()  # loads kernels, which cannot be loaded while a graph is captured
            torch.cuda.synchronize()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                logits = step()
            finally:
                graph.capture_end()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
