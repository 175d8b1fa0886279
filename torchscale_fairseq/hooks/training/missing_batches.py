"""Updates of several batches (--update-freq) in which some processes have fewer than others, at the end of an epoch.

fairseq lets another batch stand in for each that a process lacks, without its gradient. If the last batch of an update
is a stand-in, fairseq leaves out the sample sizes and figures of all batches of that process, whose gradients count:
the sum of gradients is divided by too little. Here stand-ins come first, and each is left out by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any


class StandIn(dict[str, Any]):
    """The figures of a batch that stands in for another."""


def own_last(samples: Sequence[Any]) -> list[Any]:
    """The batches of an update, those that this process lacks first. They are empty, or None."""
    return sorted(samples, key=bool)


def leave_out_stand_ins(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """A task's ``train_step`` whose batches without a gradient have no sample size, and figures that ``own_figures``
    leaves out."""

    def step(*arguments: Any, ignore_grad: bool = False, **keywords: Any) -> Any:
        loss, sample_size, figures = train_step(*arguments, ignore_grad=ignore_grad, **keywords)
        return (loss, 0 * sample_size, StandIn(figures)) if ignore_grad else (loss, sample_size, figures)

    return step


def own_figures(logging_outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of a process's own batches. None are left if all were stand-ins, or ran out of memory."""
    return [figures for figures in logging_outputs if not isinstance(figures, StandIn)]
