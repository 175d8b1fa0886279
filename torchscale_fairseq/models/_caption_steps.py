"""A captioning BEiT-3 as the encoder and the incremental decoder that fairseq's beam search steps through."""

from typing import Any

from fairseq.models import BaseFairseqModel, FairseqEncoder, FairseqIncrementalDecoder
from torch import Tensor

from torchscale_fairseq.core.architectures.beit3_captioning import State, reorder

from ._beit3_jobs import CaptioningModel

STATE = "captions"
"""The key of the state in fairseq's dictionary."""


class CaptionSteps(BaseFairseqModel):
    """Reads images once, and adds a word a step.

    Args:
        model: with the weights.
        dictionary: of the words.
    """

    def __init__(self, model: CaptioningModel, dictionary: Any):
        super().__init__()
        self.encoder = _Images(model, dictionary)
        self.decoder = _Words(model, dictionary)

    def max_decoder_positions(self) -> int:
        """Longest caption in tokens, one of which is the mask."""
        return self.decoder.max_positions()


class _Images(FairseqEncoder):
    """From images to the state of captions without words, which the decoder takes over in its first step."""

    def __init__(self, model: CaptioningModel, dictionary: Any):
        super().__init__(dictionary)
        self.model = model

    def forward_torchscript(self, net_input: dict[str, Tensor]) -> dict[str, State]:
        """The state; named by fairseq."""
        return {STATE: self.model.read_images(net_input["source"])}

    def reorder_encoder_out(self, encoder_out: dict[str, State], new_order: Tensor) -> dict[str, State]:
        """Repeat images for their beams. Later, the decoder reorders the state, which is its own then."""
        if STATE in encoder_out:
            reorder(encoder_out[STATE], new_order)
        return encoder_out


class _Words(FairseqIncrementalDecoder):
    """From the newest word to the scores of the next one."""

    def __init__(self, model: CaptioningModel, dictionary: Any):
        super().__init__(dictionary)
        self.model = model
        self.mask = dictionary.index("<mask>")
        self.adaptive_softmax = None  # asked for by FairseqDecoder.get_normalized_probs

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, State] | None = None,
        incremental_state: dict[str, Any] | None = None,
    ) -> tuple[Tensor, None]:
        """(batch, words so far) to scores (batch, 1, vocabulary). Neither <mask> nor <s> is written."""
        assert encoder_out is not None and incremental_state is not None, "captions are generated step by step"
        if STATE not in incremental_state:
            incremental_state[STATE] = encoder_out.pop(STATE)
        newest, place = prev_output_tokens[:, -1], prev_output_tokens.size(1) - 1
        scores = self.model.next_word(incremental_state[STATE], newest, place, self.mask)
        scores[:, [self.mask, self.dictionary.bos()]] = float("-inf")
        return scores.unsqueeze(1), None

    def reorder_incremental_state_scripting(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Follow beam search."""
        if STATE in incremental_state:
            reorder(incremental_state[STATE], new_order)

    def max_positions(self) -> int:
        """Longest caption in tokens, one of which is the mask."""
        return self.model.beit3.max_words
