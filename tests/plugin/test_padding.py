"""Where a batch of translation has padding is noted while the host has it, so that nothing asks the device."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("fairseq")

from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoderDecoderModel

from tests.plugin.reads import Reads
from torchscale_fairseq.core.config import EncoderDecoderConfig
from torchscale_fairseq.core.ops.masks import Padding
from torchscale_fairseq.core.ops.positions import padding_of
from torchscale_fairseq.hooks.training.padding import has_no_padding, note_padding
from torchscale_fairseq.models._decoder import TextDecoder
from torchscale_fairseq.models._dictionary import token_embedding
from torchscale_fairseq.models._encoder import TextEncoder

PAD = Dictionary().pad()
ROWS = {
    "none": [[4, 5, 6, 2], [5, 6, 7, 2]],
    "left": [[PAD, PAD, 6, 2], [5, 6, 7, 2]],
    "right": [[4, 2, PAD, PAD], [5, 6, 7, 2]],
    "inside": [[4, PAD, 6, 2], [5, 6, 7, 2]],
}
PADDING = {
    "none": Padding(),
    "left": Padding(somewhere=True, before_tokens=True),
    "right": Padding(somewhere=True),
    "inside": Padding(somewhere=True, before_tokens=True, inside=True),
}


@pytest.mark.parametrize("place", ROWS)
def test_padding_by_hand(place: str) -> None:
    assert padding_of(torch.tensor(ROWS[place]) == PAD) == PADDING[place]


def batch(source: str, target: str) -> dict[str, Any]:
    tokens = {"src_tokens": torch.tensor(ROWS[source]), "prev_output_tokens": torch.tensor(ROWS[target])}
    inputs = {**tokens, "src_lengths": (tokens["src_tokens"] != PAD).sum(1)}
    return {"net_input": inputs, "target": tokens["prev_output_tokens"].roll(1), "ntokens": 8}


def build() -> FairseqEncoderDecoderModel:
    dictionary = Dictionary()
    for symbol in "abcd":
        dictionary.add_symbol(symbol)
    torch.manual_seed(1)
    sizes: dict[str, Any] = {f"{side}_embed_dim": 8 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_embed_dim": 8 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    config = EncoderDecoderConfig(vocab_size=len(dictionary), rel_pos_buckets=4, max_rel_pos=8, dropout=0.0, **sizes)
    sides = [kind(config, dictionary, token_embedding(dictionary, 8, None)) for kind in (TextEncoder, TextDecoder)]
    return FairseqEncoderDecoderModel(*sides)


def gradients(model: torch.nn.Module, sample: dict[str, Any]) -> list[Tensor]:
    """With the loss."""
    model.zero_grad()
    criterion = LabelSmoothedCrossEntropyCriterion(_Task(), sentence_avg=False, label_smoothing=0.1)
    loss = criterion(model, sample)[0]
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


class _Task:
    target_dictionary = Dictionary()


@pytest.mark.parametrize("source", ROWS)
@pytest.mark.parametrize("target", ROWS)
def test_nothing_is_asked_and_nothing_changes(source: str, target: str) -> None:
    """In forward and backward; what is noted of a batch on the host holds for its copy on the device."""
    model = build()
    expected = gradients(model, batch(source, target))
    noted = batch(source, target)
    note_padding(batch(source, target), noted, PAD)
    assert has_no_padding(noted["net_input"]["src_tokens"]) == (source == "none")
    with Reads() as reads:
        found = gradients(model, noted)
    assert not reads.found
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
