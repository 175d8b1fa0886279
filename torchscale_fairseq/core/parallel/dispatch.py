"""Taking rows to the processes that hold their experts, and back.

Rows are sorted by expert. A dispatcher turns them into rows of this process's experts, sorted likewise; what they
become is brought back in the order of the start.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops.segments import Segments
from .exchange import all_to_all
from .groups import ExpertSplit, exchange_group


@dataclass(frozen=True)
class Dispatched:
    """Rows at their experts."""

    rows: Tensor
    """(rows here, width)."""
    segments: Segments
    """The rows of each local expert."""
    order: Tensor | None = None
    """(rows here,), where each row stood when it arrived."""
    sent: list[int] | None = None
    """Rows that went to each process."""
    received: list[int] | None = None
    """Rows that came from each process."""


class LocalDispatcher:
    """All experts are here: nothing moves."""

    refusal: str | None = None
    """Why the counts of rows cannot stay on the device; None if they can."""

    def dispatch(self, rows: Tensor, load: Tensor) -> Dispatched:
        """Rows (rows, width) of which load (experts,) says how many each expert gets."""
        return Dispatched(rows, Segments(load))

    def collect(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        """The experts' outputs, in the order of the rows that were dispatched."""
        return outputs


class AllToAllDispatcher:
    """Experts are split over processes: rows go out in one all-to-all and come back in one more."""

    refusal = "does not serve experts of several processes, unless these are few and their batches of one size"

    def __init__(self, split: ExpertSplit):
        self.split = split

    def dispatch(self, rows: Tensor, load: Tensor) -> Dispatched:
        """Send each row to the process of its expert; arguments as for ``LocalDispatcher``. Every process of the group
        has to take part, even with no rows. The host waits once for the device, to learn how many rows go where."""
        split, group = self.split, exchange_group(self.split)
        arriving = torch.empty_like(load)
        dist.all_to_all_single(arriving, load.contiguous(), group=group)
        leaving, coming = torch.stack((load, arriving)).view(2, split.size, split.local).tolist()
        sent, received = [sum(loads) for loads in leaving], [sum(loads) for loads in coming]
        rows = all_to_all(rows, sent, received, group)
        experts = torch.arange(split.local, device=rows.device).repeat(split.size)
        order = experts.repeat_interleave(arriving, output_size=len(rows)).argsort(stable=True)
        counts = arriving.view(split.size, split.local).sum(0)
        segments = Segments(counts, sizes=[sum(loads) for loads in zip(*coming, strict=True)])
        return Dispatched(rows[order], segments, order, sent, received)

    def collect(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        """Return the experts' rows to their tokens; arguments as for ``LocalDispatcher``."""
        assert dispatched.order is not None
        arrived = torch.empty_like(outputs).index_copy(0, dispatched.order, outputs)
        assert dispatched.received is not None and dispatched.sent is not None
        return all_to_all(arrived, dispatched.received, dispatched.sent, exchange_group(self.split))


Dispatcher = LocalDispatcher | AllToAllDispatcher


def dispatcher_for(split: ExpertSplit) -> Dispatcher:
    """The dispatcher that serves a split, whatever the sizes of the processes' batches."""
    return LocalDispatcher() if split.size == 1 else AllToAllDispatcher(split)
