"""Scores of label prefixes under connectionist temporal classification (CTC), for joint decoding.

"Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", IEEE JSTSP 11(8), 2017, sec. III-B. One matrix
product scores all labels that may come next; only the label that is chosen takes a pass over the frames.

Neighbouring rows of prefixes share an utterance: ``log_probs`` has a row per utterance, and n times as many prefixes
follow in the order of the utterances.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLANK = 0
LOWEST = -1e10
"""Stands for the logarithm of zero, so that differences stay finite."""


@dataclass(frozen=True)
class Prefixes:
    """Probabilities of one prefix of labels per row, as logarithms in float32."""

    ends_in_label: Tensor
    """(rows, frames + 1), of all alignments of the first frames with the prefix that end in its last label."""
    ends_in_blank: Tensor
    """(rows, frames + 1), of those that end in a blank."""
    score: Tensor
    """(rows,), of all label sequences that begin with the prefix."""
    last: Tensor
    """(rows,), the last label; the blank stands for none."""

    @classmethod
    def empty(cls, log_probs: Tensor, rows: int) -> "Prefixes":
        """Prefixes without labels.

        Args:
            log_probs: (batch, frames, labels).
            rows: a multiple of batch.
        """
        blank = torch.nn.functional.pad(log_probs[..., BLANK].cumsum(1), (1, 0))
        blank = blank.repeat_interleave(rows // log_probs.size(0), 0)
        nothing = torch.full((rows,), BLANK, device=blank.device)
        return cls(torch.full_like(blank, LOWEST), blank, blank.new_zeros(rows), nothing)

    def select(self, rows: Tensor) -> "Prefixes":
        """The prefixes of these rows."""
        return Prefixes(*(getattr(self, name).index_select(0, rows) for name in self.__dataclass_fields__))

    def next_scores(self, log_probs: Tensor) -> Tensor:
        """(rows, labels), scores of the prefixes that are longer by one label; the blank is none.

        Args:
            log_probs: (batch, frames, labels).
        """
        ends = torch.logaddexp(self.ends_in_label, self.ends_in_blank)[:, :-1]
        peak = ends.amax(1, keepdim=True)
        grouped = (ends - peak).exp().view(log_probs.size(0), -1, ends.size(1))
        scores = _log(torch.bmm(grouped, log_probs.exp()).flatten(0, 1)) + peak
        again = self.ends_in_blank[:, :-1] + _of_label(log_probs, self.last)  # the last label repeats after a blank
        scores = scores.scatter(1, self.last[:, None], again.logsumexp(1, keepdim=True))
        return scores.index_fill(1, self.last.new_tensor([BLANK]), LOWEST)

    def extend(self, log_probs: Tensor, labels: Tensor, scores: Tensor) -> "Prefixes":
        """The prefixes with one more label each.

        Args:
            log_probs: (batch, frames, labels).
            labels: (rows,), without blanks.
            scores: (rows, labels), ``next_scores``.
        """
        emitted = _of_label(log_probs, labels)
        blank = log_probs[..., BLANK].repeat_interleave(labels.numel() // log_probs.size(0), 0)
        before = torch.logaddexp(self.ends_in_label, self.ends_in_blank)
        before = torch.where((labels == self.last)[:, None], self.ends_in_blank, before)
        score = scores.gather(1, labels[:, None]).squeeze(1)
        in_label = in_blank = torch.full_like(score, LOWEST)
        columns = [(in_label, in_blank)]
        for frame in range(log_probs.size(1)):
            in_label, in_blank = (
                torch.logaddexp(in_label, before[:, frame]) + emitted[:, frame],
                torch.logaddexp(in_label, in_blank) + blank[:, frame],
            )
            columns.append((in_label, in_blank))
        ends_in_label, ends_in_blank = (torch.stack(column, 1) for column in zip(*columns, strict=True))
        return Prefixes(ends_in_label, ends_in_blank, score, labels)


def masked_log_probs(logits: Tensor, padding_mask: Tensor) -> Tensor:
    """(batch, frames, labels), log-probabilities in float32; padded frames are blank.

    Args:
        logits: (batch, frames, labels).
        padding_mask: (batch, frames), True for padding.
    """
    always_blank = torch.full_like(logits[0, 0], LOWEST, dtype=torch.float32)
    always_blank[BLANK] = 0.0
    return torch.where(padding_mask.unsqueeze(-1), always_blank, logits.float().log_softmax(-1))


def _of_label(log_probs: Tensor, labels: Tensor) -> Tensor:
    """(rows, frames), of one label (rows,) each."""
    batch, frames, _ = log_probs.shape
    index = labels.view(batch, 1, -1).expand(-1, frames, -1)
    return log_probs.gather(2, index).transpose(1, 2).reshape(labels.numel(), frames)


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()
