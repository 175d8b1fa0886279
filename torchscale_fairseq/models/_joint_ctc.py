"""Joint decoding: in beam search, the decoder's scores and those of CTC are added."""

from typing import Any

from torch import Tensor

from torchscale_fairseq.core.ops.ctc_prefix import Prefixes

_KEY = "ctc_prefixes"
SCORES = "ctc_scores"
LEAST = -87.0
"""Score of a label that CTC excludes, such as one more than there are frames: the smallest normal float32."""


class ScoresByCTC:
    """Goes before the decoder's class in a decoder's bases."""

    ctc_weight = 0.0
    """Share of CTC's scores."""

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: dict[Any, Any] | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """As the decoder's; step by step, the second value also has CTC's scores of the next labels."""
        x, extra = super().forward(  # type: ignore[misc]
            prev_output_tokens, encoder_out=encoder_out, incremental_state=incremental_state, **arguments
        )
        log_probs = None if encoder_out is None else encoder_out.get("ctc_log_probs")
        if incremental_state is not None and log_probs is not None and self.ctc_weight > 0:
            extra[SCORES] = next_label_scores(incremental_state, prev_output_tokens[:, 1:], log_probs)
        return x, extra

    def joint_scores(self, log_probs: Tensor, extra: dict[str, Any] | None) -> Tensor:
        """Log-probabilities (rows, steps, labels), to whose last step those of CTC are added if there are any."""
        scores = (extra or {}).get(SCORES)
        if scores is None:
            return log_probs
        return (1 - self.ctc_weight) * log_probs[:, -1:] + self.ctc_weight * scores.unsqueeze(1)

    def reorder_incremental_state(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        """Follow beam search."""
        super().reorder_incremental_state(incremental_state, new_order)  # type: ignore[misc]
        if _KEY in incremental_state:
            labels, prefixes, scores = incremental_state[_KEY]
            incremental_state[_KEY] = labels, prefixes.select(new_order), scores.index_select(0, new_order)


def next_label_scores(state: dict[Any, Any], labels: Tensor, log_probs: Tensor) -> Tensor:
    """(rows, labels), log-probabilities of the label that comes next under CTC.

    Args:
        state: incremental; keeps the prefixes and the scores of the labels after them.
        labels: (rows, length), the prefixes so far; those that the state has seen are not read.
        log_probs: (batch, frames, labels), as ``core.ops.ctc_prefix`` has them.
    """
    if _KEY not in state:
        prefixes = Prefixes.empty(log_probs, labels.size(0))
        state[_KEY] = 0, prefixes, prefixes.next_scores(log_probs)
    length, prefixes, scores = state[_KEY]
    for place in range(length, labels.size(1)):
        prefixes = prefixes.extend(log_probs, labels[:, place].clone(), scores)  # beam search moves labels in place
        scores = prefixes.next_scores(log_probs)
    state[_KEY] = labels.size(1), prefixes, scores
    return (scores - prefixes.score[:, None]).clamp_min(LEAST)
