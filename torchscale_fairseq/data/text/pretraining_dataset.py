"""Samples of a corpus, tokenized as they are read, as batches for fairseq's models and criterions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from numpy.typing import NDArray

from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text import blocks
from torchscale_fairseq.data.text.corpus import Corpus
from torchscale_fairseq.data.text.index import unit_text
from torchscale_fairseq.data.text.masking import Masking
from torchscale_fairseq.data.text.order import SampleOrder
from torchscale_fairseq.data.text.pieces import TextEncoder

Batch = dict[str, Any]
_NO_STARTS = np.zeros(0, dtype=np.int64)


class PretrainingDataset(FairseqDataset):
    """Batches by their place in an epoch's order.

    Args:
        corpus: where the samples lie.
        order: in which they are read.
        encoder: text to tokens of the dictionary.
        dictionary: fairseq's.
        masking: None for a causal language model.
        seed: of the masking.
        pad_to: tokens that each row is padded to; 0 for the longest of its batch.
        packed: batches say where documents begin, and masked ones have a <s> in front of each; the corpus has room
            for it.
    """

    def __init__(
        self,
        corpus: Corpus,
        order: SampleOrder,
        encoder: TextEncoder,
        dictionary: Any,
        *,
        masking: Masking | None,
        seed: int,
        pad_to: int = 0,
        packed: bool = False,
    ):
        self.packed = packed
        self.corpus, self.order = corpus, order
        self._encoder, self._masking, self._seed, self._pad_to = encoder, masking, seed, pad_to
        self._bos, self._eos, self._pad = dictionary.bos(), dictionary.eos(), dictionary.pad()
        self._windows = lru_cache(maxsize=2)(self._locate)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.order)

    def batch(self, epoch: int, start: int, stop: int) -> Batch:
        """The samples from one place of an epoch to another.

        Args:
            epoch: counted from 0.
            start, stop: places; none between them gives an empty batch, which fairseq takes for a dummy.

        Returns:
            ``id`` (batch,), the samples' numbers in the corpus; ``net_input`` with ``src_tokens`` (batch, seq) and
            ``src_lengths`` (batch,), and if packed ``document_starts`` (batch, seq), True for the first token of each
            document and of padding; ``target`` (batch, seq), padding where nothing is to be predicted;
            ``nsentences`` and ``ntokens``.

        Raises:
            DataError: the text on disk is not what its index says.
        """
        if start >= stop:
            return {}
        found = []
        while start < stop:
            number = self.order.window_of(start)
            first, end = self.order.start_of(number), min(stop, self.order.start_of(number + 1))
            rows, passes = self._windows(epoch, number)
            found.append((rows[start - first : end - first], passes[start - first : end - first]))
            start = end
        rows, passes = (np.concatenate(column) for column in zip(*found, strict=True))
        return self._collate(rows, passes, self.read(rows))

    def read(self, rows: NDArray[Any]) -> list[NDArray[np.int64]]:
        """The tokens of samples, from disk."""
        read = [self._units(row) for row in rows]
        units = [chosen for chosen, _, _ in read]
        pieces, counts = (np.concatenate([found[place] for found in read]) for place in (1, 2))
        all_units = np.concatenate(units)
        self._check(rows, units, counts, all_units)
        tokens = np.full(int(all_units["tokens"].sum()), self._eos)
        stops = np.cumsum(all_units["tokens"], dtype=np.int64)
        is_piece = np.ones(len(tokens), dtype=np.bool_)
        is_piece[stops[all_units["ends"]] - 1] = False
        tokens[is_piece] = pieces
        starts = np.cumsum([0, *(int(chosen["tokens"].sum()) for chosen in units[:-1])]) + rows["skip"]
        return [tokens[start : start + size] for start, size in zip(starts, rows["size"], strict=True)]

    def _units(self, row: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
        """The units of a sample that have tokens, their tokens without </s>, and how many each has."""
        shard = int(row["shard"])
        chosen = self.corpus.index(shard).units(int(row["first"]), int(row["units"]))
        content = _read_bytes(self.corpus.content(shard), int(row["byte"]), int(row["bytes"]))
        token = self.corpus.token_type(shard)
        if token is not None:
            kept = chosen[chosen["tokens"] > 0]
            return kept, self._encoder.renumbered(np.frombuffer(content, token)), kept["bytes"] // token.itemsize
        stops = np.cumsum(chosen["bytes"]).tolist()
        texts = [
            unit_text(content[start:stop])
            for start, stop, tokens in zip([0, *stops[:-1]], stops, chosen["tokens"].tolist(), strict=True)
            if tokens
        ]
        return chosen[chosen["tokens"] > 0], *self._encoder(texts)

    def _check(self, rows: NDArray[Any], units: list[NDArray[Any]], counts: Any, all_units: NDArray[Any]) -> None:
        wrong = np.flatnonzero(counts + all_units["ends"] != all_units["tokens"])
        if len(wrong):
            row = rows[np.searchsorted(np.cumsum([len(chosen) for chosen in units]), wrong[0], side="right")]
            shard = self.corpus.shards[row["shard"]]
            raise DataError(
                f"{shard}, after byte {row['byte']:,}: the text has changed since it was indexed; run again, and it "
                "is indexed anew."
            )

    def _locate(self, epoch: int, number: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        parts, within, passes = self.order.window(epoch, number)
        return self.corpus.rows(parts, within), passes

    def _collate(self, rows: NDArray[Any], passes: NDArray[np.int64], samples: list[NDArray[np.int64]]) -> Batch:
        starts = [self._document_starts(row) if self.packed else _NO_STARTS for row in rows]
        drawings = zip(rows["id"].tolist(), passes.tolist(), strict=True)
        read = [
            self._causal(sample) if self._masking is None else self._masked(sample, inside, drawing)
            for sample, inside, drawing in zip(samples, starts, drawings, strict=True)
        ]
        lengths = np.array([len(source) for source, _ in read])
        shape = (len(samples), max(int(lengths.max()), self._pad_to))
        source, target = np.full(shape, self._pad), np.full(shape, self._pad)
        for row, (tokens, wanted) in enumerate(read):
            source[row, : len(tokens)], target[row, : len(wanted)] = tokens, wanted
        inputs = {"src_tokens": torch.from_numpy(source), "src_lengths": torch.from_numpy(lengths)}
        if self.packed:
            inputs["document_starts"] = torch.from_numpy(self._marked(starts, lengths, shape))
        return {
            "id": torch.from_numpy(rows["id"].astype(np.int64)),
            "net_input": inputs,
            "target": torch.from_numpy(target),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
        }

    def _causal(self, sample: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens to read, and to predict."""
        return np.concatenate(([self._eos], sample[:-1])), sample

    def _masked(
        self, sample: NDArray[np.int64], starts: NDArray[np.int64], drawing: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens to read, with <s> in front of each document, and to predict, padding where there is none. The
        masks are drawn by two numbers."""
        assert self._masking is not None
        read, wanted = self._masking(sample, np.random.default_rng([self._seed, 2, *drawing]))
        target = np.where(wanted, sample, self._pad)
        places = np.concatenate(([0], starts))
        return np.insert(read, places, self._bos), np.insert(target, places, self._pad)

    def _document_starts(self, row: NDArray[Any]) -> NDArray[np.int64]:
        """First tokens of a sample's documents after the first, counted from the sample's first token."""
        units = self.corpus.index(int(row["shard"])).units(int(row["first"]), int(row["units"]))
        starts = blocks.document_starts(units) - row["skip"]
        return starts[(starts > 0) & (starts < row["size"])]

    def _marked(
        self, starts: list[NDArray[np.int64]], lengths: NDArray[np.int64], shape: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """(batch, seq), True for the first token of each document and of padding."""
        marked = np.zeros(shape, dtype=np.bool_)
        marked[:, 0] = True
        for row, (inside, length) in enumerate(zip(starts, lengths, strict=True)):
            # every <s> in front of a document moves those behind it
            marked[row, inside if self._masking is None else inside + np.arange(1, len(inside) + 1)] = True
            marked[row, length : length + 1] = True
        return marked

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_windows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._windows = lru_cache(maxsize=2)(self._locate)


def _read_bytes(path: str, start: int, size: int) -> bytes:
    with _open(path) as descriptor:
        content = os.pread(descriptor, size, start)
    if len(content) < size:
        raise DataError(f"{path} ends before byte {start + size:,}: it has changed since it was indexed.")
    return content


@contextmanager
def _open(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; it was there when training began.") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
