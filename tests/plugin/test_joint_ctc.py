"""CTC's share in beam search: what a state keeps equals what is computed anew, however beam search moves rows."""

from typing import Any

import torch

from tests.helpers import assert_close
from torchscale_fairseq.core.ops.ctc_prefix import masked_log_probs
from torchscale_fairseq.models._joint_ctc import LEAST, ScoresByCTC, next_label_scores

UTTERANCES, BEAMS, LABELS, STEPS = 2, 3, 6, 4


class _Follows:
    def reorder_incremental_state(self, incremental_state, new_order) -> None:
        """There is no other state."""


class Decoder(ScoresByCTC, _Follows):
    pass


def test_a_state_follows_beam_search() -> None:
    """Labels are moved in place, as fairseq's generator does."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(UTTERANCES, 9, LABELS, generator=generator)
    log_probs = masked_log_probs(logits, torch.arange(9) >= torch.tensor([[9], [6]]))
    rows = UTTERANCES * BEAMS
    tokens = torch.zeros(rows, STEPS + 1, dtype=torch.long)
    state: dict[Any, Any] = {}
    for step in range(STEPS):
        scores = next_label_scores(state, tokens[:, 1 : step + 1], log_probs)
        assert_close(scores, next_label_scores({}, tokens[:, 1 : step + 1], log_probs), "float32")
        assert float(scores.max()) < 1e-5 and float(scores.min()) >= LEAST
        within = torch.randint(BEAMS, (UTTERANCES, BEAMS), generator=generator)
        order = (within + BEAMS * torch.arange(UTTERANCES)[:, None]).flatten()
        tokens[:] = tokens[order]
        tokens[:, step + 1] = torch.randint(1, 4, (rows,), generator=generator)
        Decoder().reorder_incremental_state(state, order)
