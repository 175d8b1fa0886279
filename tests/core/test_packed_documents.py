"""Packed rows: several documents in one row give what each of them gives alone, values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.core.families import main_output, retnet
from tests.core.models import decoder, encoder, encoder_decoder, tokens
from tests.helpers import assert_close
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.attention import AttentionMask
from torchscale_fairseq.core.ops.backends import attention
from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.core.ops.packed_attention import _written_into_bias

LENGTHS = ((5, 1, 3), (2, 7))
"""Tokens of each document in each row."""
DROPLESS: dict[str, Any] = {
    "moe_freq": 2,
    "moe_expert_count": 4,
    "use_xmoe": True,
    "moe_eval_capacity_token_fraction": None,
}
CAUSAL: dict[str, dict[str, Any]] = {
    "deepnorm": {"deepnorm": True},
    "magneto": {},
    "learned": {"learned_pos": True},
    "sinusoidal": {"no_token_positional_embeddings": False},
    "xpos": {"xpos_rel_pos": True, "xpos_scale_base": 32},
    "blockwise": {"xpos_rel_pos": True, "xpos_scale_base": 32, "blockwise_causal_window": 6},
    "relative_bias": {"rel_pos_buckets": 8, "max_rel_pos": 16},
    "naive": {"attention_backend": "naive"},
    "recomputed": {"checkpoint_activations": True},
    "experts": DROPLESS,
    "compatible": {"torchscale_compatible": True, "rel_pos_buckets": 8, "max_rel_pos": 16},
}
MASKED = {name: CAUSAL[name] for name in ("magneto", "deepnorm", "learned", "xpos", "relative_bias", "naive")}
MODELS = {
    **{f"gpt_{name}": (decoder, options) for name, options in CAUSAL.items()},
    **{f"bert_{name}": (encoder, options) for name, options in MASKED.items()},
    "retnet": (retnet, {}),
}


def first_tokens(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> Tensor:
    """(batch, seq), True for the first token of each document."""
    starts = torch.zeros(len(lengths), sum(lengths[0]), dtype=torch.bool)
    for row, documents in zip(starts, lengths, strict=True):
        row[torch.tensor(documents).cumsum(0) - torch.tensor(documents)] = True
    return starts


def gradients(model: nn.Module, output: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of each parameter that a weighted sum of the output depends on."""
    model.zero_grad()
    (output * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_each_document_is_computed_as_if_it_were_alone(name: str) -> None:
    build, options = MODELS[name]
    model = build(**options).double()
    text = tokens(2, 9)
    packed = main_output(model(text, document_starts=first_tokens()))
    weights = torch.randn(packed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = gradients(model, packed, weights)
    pieces = [text[row, None] for row in range(2)]
    split = [part for piece, lengths in zip(pieces, LENGTHS, strict=True) for part in piece.split(lengths, 1)]
    alone = torch.cat([main_output(model(part)) for part in split], 1)
    assert_close(packed.flatten(0, 1), alone[0], "float64")
    expected = gradients(model, alone, weights.flatten(0, 1)[None])
    for parameter, gradient in expected.items():
        assert_close(found[parameter], gradient, "float64", f"gradient of {parameter}")


@pytest.mark.parametrize("causal", [True, False])
def test_a_bias_of_rows_hides_other_documents(causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 9, 3, 4, dtype=torch.float64).requires_grad_()
    by_distance = torch.randn(1, 3, 17, dtype=torch.float64, requires_grad=True)
    bias = by_distance[..., torch.arange(9)[:, None] - torch.arange(9) + 8]
    mask = AttentionMask(causal=causal, bias=bias, documents=Documents.of(first_tokens()))
    whole = _written_into_bias(mask, Documents.of(first_tokens()), bias)
    assert whole.documents is None
    rows, alone = (attention(query, key, value, mask=given)[0] for given in (whole, mask))
    assert_close(rows, alone, "float64")
    leaves = (query, key, value, by_distance)
    found, wanted = (torch.autograd.grad(x.square().sum(), leaves, retain_graph=True) for x in (rows, alone))
    for gradient, expected in zip(found, wanted, strict=True):
        assert_close(gradient, expected, "float64")


@pytest.mark.parametrize("build", [decoder, encoder])
def test_padding_behind_documents_changes_nothing(build: Any) -> None:
    model = build(xpos_rel_pos=True, learned_pos=True).double()
    text, starts = tokens(1, 9), first_tokens(((5, 4),))
    padded = torch.nn.functional.pad(text, (0, 3), value=1)
    name = "self_attn_padding_mask" if build is decoder else "encoder_padding_mask"
    output = main_output(model(padded, document_starts=nn.functional.pad(starts, (0, 3)), **{name: padded.eq(1)}))
    assert_close(output[:, :9], main_output(model(text, document_starts=starts)), "float64")


@pytest.mark.parametrize("name", ["gpt_learned", "gpt_xpos", "bert_magneto", "bert_learned", "bert_relative_bias"])
def test_the_device_is_not_asked_where_the_host_knows_the_documents(name: str) -> None:
    """On the meta device, which has no values to give."""
    build, options = MODELS[name]
    starts, device = first_tokens(((4, 4), (4, 4))), torch.device("meta")
    known = note_documents(starts.to(device), Documents.of(starts).to(device))
    model = build(**options).to(device)
    main_output(model(tokens(2, 8).to(device), document_starts=known)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_positions_begin_anew() -> None:
    documents = Documents.of(first_tokens())
    assert documents.positions.tolist() == [[0, 1, 2, 3, 4, 0, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5, 6]]
    assert documents.lengths.tolist() == [5, 1, 3, 2, 7] and documents.longest == 7
    assert documents.offsets.tolist() == [0, 5, 6, 9, 11, 18]
    lengths = [tuple(group.tokens.shape) for group in documents.groups]
    assert lengths == [(1, 1), (2, 3), (2, 7)]


def test_a_row_longer_than_the_positions_holds_documents_that_are_not() -> None:
    model = decoder(learned_pos=True, max_target_positions=5)
    model(tokens(1, 9), document_starts=first_tokens(((5, 4),)))
    with pytest.raises(InputError, match="a sequence of 6 tokens is longer than max_target_positions"):
        model(tokens(1, 9), document_starts=first_tokens(((6, 3),)))


def test_models_that_cannot_separate_documents_say_why() -> None:
    starts = first_tokens()
    longnet = decoder(segment_length=[4, 8], dilated_ratio=[1, 2])
    with pytest.raises(InputError, match="document_starts needs dense attention: segment_length counts from"):
        longnet(tokens(2, 9), document_starts=starts)
    with pytest.raises(ValueError, match="document_starts has no place with incremental_state"):
        decoder()(tokens(2, 9), document_starts=starts, incremental_state={})
    with pytest.raises(ValueError, match="attn_mask and multiway_split_position have no place with document_starts"):
        encoder()(tokens(2, 9), document_starts=starts, attn_mask=torch.zeros(9, 9))


@pytest.mark.parametrize(
    "options", [{"deepnorm": True}, {"rel_pos_buckets": 8, "max_rel_pos": 16}, {"xpos_rel_pos": True}]
)
def test_pairs_of_documents_in_an_encoder_decoder(options: dict[str, Any]) -> None:
    model = encoder_decoder(**options).double()
    source, target = tokens(1, 11), tokens(1, 9, seed=1)
    sizes = {"source": (4, 1, 6), "target": (5, 1, 3)}
    starts = {name: first_tokens((lengths,)) for name, lengths in sizes.items()}
    encoded = model.encoder(source, document_starts=starts["source"])
    packed = model.decoder(target, encoder_out=encoded, document_starts=starts["target"])[0]
    weights = torch.randn(packed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = gradients(model, packed, weights)
    pairs = zip(source.split(sizes["source"], 1), target.split(sizes["target"], 1), strict=True)
    alone = torch.cat([main_output(model(*pair)) for pair in pairs], 1)
    assert_close(packed, alone, "float64")
    for parameter, gradient in gradients(model, alone, weights).items():
        assert_close(found[parameter], gradient, "float64", f"gradient of {parameter}")
    with pytest.raises(ValueError, match="document_starts marks 3 documents, and the encoder's marks 0"):
        model.decoder(target, encoder_out=model.encoder(source), document_starts=starts["target"])
