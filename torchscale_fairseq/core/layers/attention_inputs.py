"""Inputs of attention other than the queries' own tokens; made once per forward pass, for all layers."""

from dataclasses import dataclass

from torch import Tensor

from ..ops.attention import AttentionMask
from ..ops.xpos import XPosTables
from ..parallel.sequence import SequenceSlice


@dataclass(frozen=True)
class AttentionInputs(AttentionMask):
    """Inputs of attention that layers share. Without any, every token of a sequence sees all others.

    Keys are those in the cache and the new ones; where there is a memory, its rows.
    """

    memory: Tensor | None = None
    """(groups, memory_seq, memory_dim), an encoder's output to attend to, each row for batch / groups neighbouring rows
    of queries (the beams of a sentence); None for self-attention."""
    xpos: XPosTables | None = None
    """Tables that rotate queries and new keys."""
    split_position: int | None = None
    """Tokens of the first modality, where modules are multiway."""
    sequence_slice: SequenceSlice | None = None
    """The tokens are this process's slice of longer rows, whose padding it knows."""


FULL_ATTENTION = AttentionInputs()
