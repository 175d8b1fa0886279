"""The loss of masked language models on a GPU without waits, in shapes that recur.

fairseq's ``masked_lm`` picks the tokens that are to be predicted by a mask. The host waits until the device has counted
them, several times per update, and nearly every batch has another number of them. Here the host finds them in its own
copy of the batch. Their places are filled up by those of other tokens, whose targets are padding and count nothing, so
that batches have one of few shapes. Losses and gradients are fairseq's.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from fairseq.criterions.masked_lm import MaskedLmLoss
from torch import Tensor

from torchscale_fairseq.core.ops.linear_cross_entropy import summed_linear_cross_entropy
from torchscale_fairseq.hooks.contracts import ReadsMaskedPositions, finds_unused_parameters

POSITIONS, COUNT = "masked_positions", "masked_count"
"""Entries of a batch: places of tokens, (tokens,), those to be predicted first; and a Count of these."""
DEVICES = ("cuda",)
"""Where this is done. On a CPU fairseq's way is the faster one."""
PARTS, MULTIPLE = 32, 64
"""The number of places is a multiple of a part of the batch, and that of MULTIPLE tokens. It recurs unless the number
of masked tokens varies by more than that."""


class Count(int):
    """A number of a batch that is logged, and on which nothing that the device computes depends."""


def reads_positions(model: Any, criterion: Any) -> bool:
    """Whether a criterion and a model, neither of them wrapped, can do without a mask."""
    return isinstance(criterion, MaskedLmLoss) and not criterion.tpu and isinstance(model, ReadsMaskedPositions)


def with_masked_positions(batch: Any, model: Any, criterion: Any, device: torch.device) -> Any:
    """A batch on the host that says which tokens are to be predicted, if ``loss_at_positions`` can use that.

    Args:
        batch: fairseq's; anything but a dictionary with targets is left alone.
        model, criterion: of the Trainer, not wrapped.
        device: where the batch goes.
    """
    if device.type not in DEVICES or not isinstance(batch, dict) or "target" not in batch or POSITIONS in batch:
        return batch
    if not reads_positions(model, criterion):
        return batch
    target = batch["target"]
    positions, count = masked_positions(target, criterion.padding_idx)
    return {**batch, POSITIONS: positions.pin_memory() if target.is_pinned() else positions, COUNT: count}


def masked_positions(target: Tensor, pad: int) -> tuple[Tensor, Count]:
    """Places of a batch's masked tokens, then of as many others as fill them up, (tokens,); and how many are masked.

    Args:
        target: (batch, seq), padding where nothing is to be predicted.
        pad: the token.
    """
    masked = target.flatten() != pad
    count = int(masked.sum())
    places = torch.cat((masked.nonzero(), masked.logical_not().nonzero())).squeeze(1)
    return places[: room_for(count, masked.numel())], Count(count)


def room_for(count: int, tokens: int) -> int:
    """Places for this number of masked tokens, in a batch of this number of tokens."""
    step = MULTIPLE * math.ceil(tokens / (PARTS * MULTIPLE))
    return min(tokens, step * max(1, math.ceil(count / step)))


def loss_at_positions(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``MaskedLmLoss.forward``: from the features of masked tokens and without keeping their logits, if a batch says
    where they are."""

    def forward(self: Any, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, Any]:
        # --find-unused-parameters does not see what is used after the model's forward pass
        parts = None if POSITIONS not in sample or finds_unused_parameters(model) else model.projection
        if parts is None:
            output: tuple[Tensor, Any, Any] = stock(self, model, sample, reduce)
            return output
        positions, count = sample[POSITIONS], sample[COUNT]
        features, _ = model(**sample["net_input"], masked_positions=positions)
        weight, bias = parts
        target = sample["target"].flatten().index_select(0, positions)
        loss, _ = summed_linear_cross_entropy(features, weight, target, bias=bias, ignore_index=self.padding_idx)
        numbers = {"ntokens": sample["ntokens"], "nsentences": sample["nsentences"], "sample_size": count}
        return loss, count, {"loss": loss.detach(), **numbers}

    return forward
