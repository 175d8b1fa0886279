"""The core's state of decoding in place of transformers' caches."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchscale_fairseq.core.layers.cache import reorder_incremental_state


class DecodingCache:
    """Keys and values, LongNet's kept ones, or RetNet's state; made empty and filled by the model."""

    is_linear = (True,)
    is_compileable = False

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}
        self._length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, padding included."""
        return self._length

    def extend(self, new_tokens: Tensor) -> Tensor:
        """Count tokens as seen.

        Args:
            new_tokens: (batch, new).

        Returns:
            (batch, seen and new), with zeros for those seen, as the core expects them.
        """
        whole = F.pad(new_tokens, (self._length, 0))
        self._length += new_tokens.size(1)
        return whole

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow beam search: keep the rows (new batch,), in that order."""
        reorder_incremental_state(self.state, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row next to itself."""
        rows = self._rows()
        self.reorder_cache(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows."""
        self.reorder_cache(indices)

    def _rows(self) -> Tensor:
        (state,) = self.state.values()
        return torch.arange(state.layers[0].self_attn.batch_size)
