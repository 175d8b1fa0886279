"""The slices of slides that processes share (--seq-parallel)."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from torchscale_fairseq.core.parallel.sequence import SequenceSlice


class SlicesOfSlides:
    """Cuts batches of slides. The class token is the first token of the first process.

    Args:
        group: the processes.
    """

    def __init__(self, group: ProcessGroup):
        self._group = group

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """This process's slice of a batch of whole slides."""
        inputs = sample["net_input"]
        features, mask = inputs["features"], inputs["padding_mask"]
        tokens, size = features.size(1) + 1, dist.get_world_size(self._group)
        length = -(-tokens // size)
        lengths = None
        if mask is not None or length * size > tokens:
            lengths = torch.full((len(features),), tokens) if mask is None else 1 + (~mask).sum(1)
        mine = SequenceSlice(self._group, length, lengths)
        first, stop = max(0, mine.start - 1), mine.start - 1 + length

        def own(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, max(0, stop - x.size(1))))[:, first:stop].contiguous()

        cut = {"features": own(features), "coords": own(inputs["coords"]), "sequence_slice": mine}
        counted = sample["ntokens"] if mine.rank == 0 else 0
        return {**sample, "ntokens": counted, "net_input": cut}
