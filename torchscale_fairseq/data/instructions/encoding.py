"""Conversations as tokens, with those that a model learns marked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchscale_fairseq.data.instructions.chat import Chat, Segment
from torchscale_fairseq.data.text.pieces import TextEncoder


class Example(NamedTuple):
    """A conversation."""

    tokens: NDArray[np.int64]
    """(seq,), without the </s> that a model reads first."""
    learned: NDArray[np.bool_]
    """(seq,), True for tokens of answers."""


class ConversationEncoder:
    """Text to tokens. Each segment is tokenized by itself, so that a prompt has the same tokens with an answer and
    without.

    Args:
        encoder: text to numbers of the dictionary.
        chat: how conversations are written.
        end: number of </s>.
    """

    def __init__(self, encoder: TextEncoder, chat: Chat, end: int):
        self._encoder, self._chat, self._end = encoder, chat, end

    def __call__(self, segments: Sequence[Segment]) -> Example:
        """The tokens of a conversation's segments."""
        parts = [self._tokens(segment) for segment in segments]
        learned = [np.full(len(part), segment.is_answer) for part, segment in zip(parts, segments, strict=True)]
        return Example(np.concatenate(parts), np.concatenate(learned))

    def _tokens(self, segment: Segment) -> NDArray[np.int64]:
        texts = [segment.text] if self._chat.end is None else segment.text.split(self._chat.end)
        numbers, counts = self._encoder([text.encode() for text in texts])
        runs = np.split(numbers, np.cumsum(counts)[:-1])
        tokens = [run for text in runs for run in (text, [self._end])]
        return np.concatenate(tokens if segment.ends else tokens[:-1]).astype(np.int64)
