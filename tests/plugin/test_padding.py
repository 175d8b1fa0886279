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
    "row": [[PAD, PAD, PAD, PAD], [5, 6, 7, 2]],
}
TARGETS = [place for place in ROWS if place != "row"]
PADDING = {
    "none": Padding(),
    "left": Padding(somewhere=True, before_tokens=True),
    "right": Padding(somewhere=True),
    "inside": Padding(somewhere=True, before_tokens=True, inside=True),
    "row": Padding(somewhere=True, whole_rows=True),
}
RELATIVE = {"rel_pos_buckets": 4, "max_rel_pos": 8}


@pytest.mark.parametrize("place", ROWS)
def test_padding_by_hand(place: str) -> None:
    assert padding_of(torch.tensor(ROWS[place]) == PAD) == PADDING[place]


def batch(source: str, target: str) -> dict[str, Any]:
    tokens = {"src_tokens": torch.tensor(ROWS[source]), "prev_output_tokens": torch.tensor(ROWS[target])}
    inputs = {**tokens, "src_lengths": (tokens["src_tokens"] != PAD).sum(1)}
    return {"net_input": inputs, "target": tokens["prev_output_tokens"].roll(1), "ntokens": 8}


def build(**options: Any) -> FairseqEncoderDecoderModel:
    dictionary = Dictionary()
    for symbol in "abcd":
        dictionary.add_symbol(symbol)
    torch.manual_seed(1)
    sizes: dict[str, Any] = {f"{side}_embed_dim": 8 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_embed_dim": 8 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    config = EncoderDecoderConfig(vocab_size=len(dictionary), dropout=0.0, **sizes, **options)
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
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", [RELATIVE, {}], ids=["relative", "plain"])
def test_nothing_is_asked_and_nothing_changes(source: str, target: str, options: dict[str, Any]) -> None:
    """In forward and backward; what is noted of a batch on the host holds for its copy on the device."""
    model = build(**options)
    expected = gradients(model, batch(source, target))
    noted = batch(source, target)
    note_padding(batch(source, target), noted, PAD)
    assert has_no_padding(noted["net_input"]["src_tokens"]) == (source == "none")
    with Reads() as reads:
        found = gradients(model, noted)
    assert not reads.found
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())  # norms of empty rows may overflow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_share_a_mask(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch that is noted, no layer makes one of its own; rows of the shared one lie apart as kernels want. Under
    autocast, too, it is of the queries' dtype."""
    masks = []

    def watched(*_: Any, **options: Any) -> Tensor:
        masks.append(options.get("attn_mask"))
        return sdpa(*_, **options)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    noted = batch("left", "right")
    note_padding(noted, noted, PAD)
    model = build()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(**noted["net_input"])
    given = [mask for mask in masks if mask is not None]
    assert len(given) == len(model.encoder.layers) + len(model.decoder.layers)
    assert len({mask.data_ptr() for mask in given}) == 2
    assert all(mask.dtype == dtype and mask.stride() == (8, 8, 8, 1) for mask in given)


def test_beams_share_a_mask() -> None:
    """Neighbouring rows of queries may share a row of the memory."""
    model = build()
    inputs = batch("left", "right")["net_input"]
    noted = {"net_input": dict(inputs)}
    note_padding(noted, noted, PAD)
    target = inputs["prev_output_tokens"].repeat_interleave(3, 0)
    outputs = []
    for source in (inputs["src_tokens"].clone(), noted["net_input"]["src_tokens"]):
        outputs.append(model.decoder(target, encoder_out=model.encoder(source))[0])
    assert torch.equal(*outputs)
