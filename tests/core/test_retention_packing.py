"""Padding and documents as packed sequences: equal to the definition, token by token."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import assert_close
from torchscale_fairseq.core.ops import retention_forms
from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.core.ops.retention import recurrent_retention
from torchscale_fairseq.core.ops.retention_forms import retention
from torchscale_fairseq.core.ops.retention_packing import Packing, packed_retention

LOG_DECAY = torch.tensor([-0.3, -0.05], dtype=torch.float64)


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor | None, packing: Packing
) -> tuple[Tensor, Tensor]:
    """Each sequence by the definition, as a kernel would."""
    outputs, states, shape = [], [], value.shape
    query, key, value = (x.flatten(0, 1).unsqueeze(0) for x in (query, key, value))
    for index, (start, end) in enumerate(itertools.pairwise(packing.offsets.tolist())):
        parts = (x[:, start:end] for x in (query, key, value))
        before = None if state is None else state[index : index + 1]
        output, after = recurrent_retention(*parts, LOG_DECAY, state=before)
        outputs.append(output)
        states.append(after)
    return torch.cat(outputs, 1).view(shape), torch.cat(states)


@settings(max_examples=40, deadline=None)
@given(
    padding=st.sampled_from(["none", "left", "right", "anywhere", "a whole row"]),
    documents=st.booleans(),
    with_state=st.booleans(),
    length=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition(padding: str, documents: bool, with_state: bool, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    if padding == "none" and not documents:
        return
    query, key, value = (torch.randn(3, length, 2, n, dtype=torch.float64, requires_grad=True) for n in (4, 4, 6))
    count = torch.randint(length + 1, (3, 1))
    masks = {
        "none": None,
        "left": torch.arange(length) < count,
        "right": torch.arange(length) >= count,
        "anywhere": torch.rand(3, length) < 0.5,
        "a whole row": torch.tensor([False, True, False]).unsqueeze(1).expand(3, length),
    }
    options = {
        "padding_mask": masks[padding],
        "document_starts": torch.rand(3, length) < 0.3 if documents else None,
        "state": torch.randn(3, 2, 4, 6, dtype=torch.float64) if with_state else None,
    }
    expected = recurrent_retention(query, key, value, LOG_DECAY, **options)
    packing = Packing.of(options["padding_mask"], options["document_starts"])
    found = packed_retention(one_by_one, query, key, value, packing, state=options["state"])
    real = torch.ones(3, length, dtype=torch.bool) if masks[padding] is None else ~masks[padding]
    assert_close(found[0][real], expected[0][real], "float64")
    assert found[1] is not None
    assert_close(found[1], expected[1], "float64")
    if not real.any():
        return
    direction = torch.randn_like(expected[0]) * real[..., None, None]
    gradients = [
        torch.autograd.grad((output * direction).sum() + state.sum(), (query, key, value), allow_unused=True)
        for output, state in (found, expected)
    ]
    for actual, wanted in zip(*gradients, strict=True):
        if actual is None or wanted is None:
            assert actual is None or not actual.any()
        else:
            assert_close(actual * real[..., None, None], wanted * real[..., None, None], "float64")


def test_padding_is_a_document_of_its_own_where_the_host_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 9, 2, n, dtype=torch.float64, requires_grad=True) for n in (4, 4, 6))
    starts, padding = torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 3] = starts[1, 2] = starts[1, 7] = True
    padding[0, :3] = padding[1, 7:] = True
    seen: list[Packing] = []

    def kernels(*tensors: Any, need_state: bool) -> Any:
        query, key, value, _, state, packing = tensors
        seen.append(packing)
        return one_by_one(query, key, value, state, packing)[0], None

    monkeypatch.setattr(retention_forms, "_fla_refusal", lambda *_, **__: None)
    monkeypatch.setattr(retention_forms, "_chunk_kernels", kernels)
    known = note_documents(starts, Documents.of(starts))
    results = []
    for form in (partial(retention, backend="fla", need_state=False), recurrent_retention):
        output = form(query, key, value, LOG_DECAY, document_starts=known, padding_mask=padding)[0]
        output = output.masked_fill(padding[..., None, None], 0.0)
        results.append((output, *torch.autograd.grad(output.square().sum(), (query, key, value))))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, "float64")
    assert seen[0].real is None and seen[0].lengths.tolist() == [3, 6, 2, 5, 2]


def test_real_tokens_are_copied_only_out_of_much_padding_or_of_a_document_in_parts() -> None:
    """Rows of eight tokens, with two of padding in one, and four or a gap."""
    token = torch.arange(8)
    left, right, much = token < torch.tensor([[2], [0]]), token >= torch.tensor([[8], [6]]), token < 4
    gap = (token == 3).expand(2, 8)
    for padding in (left, right):
        packing = Packing.of(padding, None)
        assert packing.real is None and sorted(packing.lengths.tolist()) == [2, 6, 8]
    for padding in (much.expand(2, 8), gap):
        packing = Packing.of(padding, None)
        assert packing.real is not None and len(packing.real) == int((~padding).sum())
    assert Packing.of(gap, token.eq(3).expand(2, 8)).real is None  # between two documents


def test_chunks() -> None:
    starts = torch.zeros(2, 150, dtype=torch.bool)
    starts[0, 149] = True
    padding = torch.arange(150) >= torch.tensor([[150], [64]])
    chunks = Packing.of(padding, starts).chunks  # of sequences of 149, 1 and 64 tokens
    assert chunks.first.tolist() == [0, 3, 4, 5]
    assert chunks.places.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]]


def test_no_state_unless_the_form_returns_one() -> None:
    query, value = torch.randn(2, 5, 2, 4), torch.randn(2, 5, 2, 6)
    starts = torch.zeros(2, 5, dtype=torch.bool)

    def without_states(*tensors: Any) -> tuple[Tensor, None]:
        return tensors[2], None

    output, state = packed_retention(without_states, query, query, value, Packing.of(None, starts))
    assert torch.equal(output, value)
    assert state is None


def test_documents_that_the_host_knows_give_the_same_sequences() -> None:
    starts = torch.zeros(3, 6, dtype=torch.bool)
    starts[0, 2] = starts[1, 0] = starts[2, 5] = True
    found = Packing.of(None, note_documents(starts.clone(), Documents.of(starts)))
    expected = Packing.of(None, starts)
    for name in ("offsets", "lengths", "row", "is_first", "is_last", "is_kept"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
