"""Batches of conversations for a causal language model, with the loss on answers alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from numpy.typing import NDArray
from torch import Tensor

from torchscale_fairseq.data.instructions.encoding import Example


class InstructionDataset(FairseqDataset):
    """Conversations, sorted by length within a random order.

    Args:
        examples: all of a split.
        dictionary: fairseq's.
        shuffle: order conversations of equal length at random.
        packed: the conversations of a batch are one row without padding, which says where each begins.
    """

    def __init__(self, examples: Sequence[Example], dictionary: Any, *, shuffle: bool, packed: bool = False):
        self.examples, self._shuffle, self._packed = examples, shuffle, packed
        self._eos, self._pad = dictionary.eos(), dictionary.pad()
        self.sizes = np.array([len(example.tokens) for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, Example]:
        return index, self.examples[index]

    def num_tokens(self, index: int) -> int:
        """Tokens of a conversation."""
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        """Tokens of a conversation, which --tokens-per-sample limits."""
        return int(self.sizes[index])

    def ordered_indices(self) -> NDArray[np.int64]:
        """All conversations, the shortest first."""
        order = np.random.permutation(len(self)) if self._shuffle else np.arange(len(self))
        return order[np.argsort(self.sizes[order], kind="stable")]

    def collater(self, samples: Sequence[tuple[int, Example]]) -> dict[str, Any]:
        """A batch.

        Returns:
            ``id`` (batch,); ``net_input`` with ``src_tokens`` (batch, seq), which begin with </s>, and
            ``src_lengths`` (batch,); ``target`` (batch, seq), padding but for the tokens of answers;
            ``nsentences``, and ``ntokens``, the tokens of answers. If packed, ``src_tokens`` and ``target`` are (1,
            tokens of all conversations), and so is ``document_starts`` in ``net_input``, True for each ``</s>`` that a
            conversation begins with.
        """
        if not samples:
            return {}
        lengths = [len(example.tokens) for _, example in samples]
        source, target = (torch.full((len(samples), max(lengths)), self._pad) for _ in range(2))
        for row, (_, example) in enumerate(samples):
            tokens, learned = torch.from_numpy(example.tokens), torch.from_numpy(example.learned)
            source[row, 0] = self._eos
            source[row, 1 : len(tokens)] = tokens[:-1]
            target[row, : len(tokens)][learned] = tokens[learned]
        inputs = {"src_tokens": source, "src_lengths": torch.tensor(lengths)}
        if self._packed:
            inputs, target = _as_one_row(inputs, target)
        return {
            "id": torch.tensor([index for index, _ in samples]),
            "net_input": inputs,
            "target": target,
            "nsentences": len(samples),
            "ntokens": int((target != self._pad).sum()),
        }


def _as_one_row(inputs: dict[str, Tensor], target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The rows of a batch one after the other, without their padding."""
    places = torch.arange(target.size(1)).expand_as(target)
    real = places < inputs["src_lengths"][:, None]
    row = {"src_tokens": inputs["src_tokens"][real][None], "src_lengths": inputs["src_lengths"].sum()[None]}
    return {**row, "document_starts": places[real][None] == 0}, target[real][None]
