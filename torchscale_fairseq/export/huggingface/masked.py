"""Masked language models: the core's Encoder with its head."""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput

from torchscale_fairseq.export.encoding import encode

from .base import CoreModel, hidden
from .causal import label_loss


class CoreForMaskedLM(CoreModel):
    """A masked language model."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Logits of each token.

        Args:
            input_ids: (batch, seq).
            attention_mask: (batch, seq), 0 for padding.
            labels: (batch, seq), the tokens behind the masks, -100 elsewhere.
            output_hidden_states: return the features in front of the first layer and after each.
        """
        out = encode(self.core, input_ids, hidden(attention_mask), return_all_hiddens=bool(output_hidden_states))
        logits = out["encoder_out"]
        loss = None
        if labels is not None:
            loss = label_loss(logits, labels) + (self.balance_loss(out["l_aux"]) if self.training else 0.0)
        states = tuple(out["encoder_states"]) if output_hidden_states else None
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=states)
        return output.to_tuple() if return_dict is False else output
