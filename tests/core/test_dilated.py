"""Dilated attention equals its definition."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import assert_close, pair, triple
from torchscale_fairseq import dilated_attention
from torchscale_fairseq.core.ops import dilated
from torchscale_fairseq.core.ops.dilated_pattern import naive_dilated_attention

BRANCHES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=3)


Triple = tuple[Tensor, Tensor, Tensor]


def inputs(batch: int, length: int, heads: int, seed: int, dtype: torch.dtype = torch.float64) -> Triple:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads, 4)
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    return triple(x.requires_grad_() for x in drawn)


def gradients(output: Tensor, tensors: Triple) -> list[Tensor]:
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return list(torch.autograd.grad((output * direction.to(output.dtype)).sum(), tensors))


@settings(max_examples=60, deadline=None)
@given(
    branches=BRANCHES,
    length=st.integers(1, 23),
    heads=st.integers(1, 4),
    causal=st.booleans(),
    left=st.lists(st.integers(0, 6), min_size=2, max_size=2),
    right=st.lists(st.integers(0, 6), min_size=2, max_size=2),
    seed=st.integers(0, 100),
)
def test_equals_its_definition(
    branches: list[tuple[int, int]],
    length: int,
    heads: int,
    causal: bool,
    left: list[int],
    right: list[int],
    seed: int,
) -> None:
    segments, ratios = zip(*branches, strict=True)
    tensors = inputs(2, length, heads, seed)
    mask = torch.zeros(2, length, dtype=torch.bool)
    for row in range(2):
        before = min(left[row], length - 1)
        mask[row, :before] = True
        mask[row, length - min(right[row], length - 1 - before) :] = True
    padding = mask if mask.any() else None
    actual = dilated_attention(*tensors, segments, ratios, causal=causal, key_padding_mask=padding)
    expected = naive_dilated_attention(*tensors, segments, ratios, causal=causal, key_padding_mask=padding)
    expected = expected.masked_fill(mask[:, :, None, None], 0.0)
    assert_close(actual, expected, "float64", "output")
    for name, found, wanted in zip("qkv", gradients(actual, tensors), gradients(expected, tensors), strict=True):
        assert_close(found, wanted, "float64", f"gradient of {name}")


@pytest.mark.parametrize("length", [13, 18])
@pytest.mark.parametrize("causal", [False, True])
def test_written_out_branches_equal_it_too(causal: bool, length: int) -> None:
    tensors = inputs(2, length, 3, 0)
    output = dilated_attention(*tensors, [4, 9], [1, 2], causal=causal, scale=0.5, backend="naive")
    expected = naive_dilated_attention(*tensors, [4, 9], [1, 2], causal=causal, scale=0.5)
    assert_close(output, expected, "float64")
    for found, wanted in zip(gradients(output, tensors), gradients(expected, tensors), strict=True):
        assert_close(found, wanted, "float64")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("compatible", [False, True])
def test_dropped_weights_stay_dropped_in_the_backward_pass(causal: bool, compatible: bool) -> None:
    """Gradients are those of finite differences, with the same weights dropped each time."""

    def seeded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(0)
        options: dict[str, Any] = {"causal": causal, "torchscale_compatible": compatible}
        return dilated_attention(query, key, value, [4], [2], dropout=0.4, **options)

    torch.autograd.gradcheck(seeded, inputs(1, 7, 3, 0))


def test_dropout_is_right_in_the_mean() -> None:
    torch.manual_seed(0)
    tensors = triple(x.detach().repeat(4000, 1, 1, 1) for x in inputs(1, 5, 2, 0))
    plain = dilated_attention(*tensors, [2, 5], [1, 2])
    dropped = dilated_attention(*tensors, [2, 5], [1, 2], dropout=0.3)
    assert (dropped != plain).any()
    torch.testing.assert_close(dropped.mean(0), plain[0], atol=0.05, rtol=0)


def test_one_dense_branch_is_attention() -> None:
    query, key, value = inputs(2, 11, 2, 0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *triple(x.transpose(1, 2) for x in (query, key, value)), is_causal=True
    )
    assert_close(dilated_attention(query, key, value, [64], [1], causal=True), expected.transpose(1, 2), "float64")


@pytest.mark.parametrize("causal", [False, True])
def test_whole_branches_take_attention(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches of one segment with all tokens need no kernel of their own, however many there are."""
    monkeypatch.setattr(dilated, "DILATED", [])
    tensors = inputs(2, 11, 2, 0)
    output = dilated_attention(*tensors, [11, 64], [1, 1], causal=causal)
    assert_close(output, naive_dilated_attention(*tensors, [11, 64], [1, 1], causal=causal), "float64")


def test_by_hand() -> None:
    """Two heads, segments of 4, every second token: head 0 keeps 0, 2 | 4, 6 and head 1 keeps 1, 3 | 5, 7."""
    value = torch.arange(8.0)[None, :, None, None].expand(1, 8, 2, 4).double()
    zero = torch.zeros_like(value)
    output = dilated_attention(zero, zero, value, [4], [2])[0, :, :, 0]
    assert output[:, 0].tolist() == [1, 0, 1, 0, 5, 0, 5, 0]
    assert output[:, 1].tolist() == [0, 2, 0, 2, 0, 6, 0, 6]


def test_no_future_leaks() -> None:
    query, key, value = inputs(1, 20, 3, 0)
    before = dilated_attention(query, key, value, [4, 8, 20], [1, 2, 3], causal=True)
    changed = pair(x.detach().clone() for x in (key, value))
    for x in changed:
        x[:, 13:] += 1.0
    after = dilated_attention(query, *changed, [4, 8, 20], [1, 2, 3], causal=True)
    assert torch.equal(before[:, :13], after[:, :13])


@pytest.mark.parametrize("causal", [False, True])
def test_a_left_padded_row_is_its_unpadded_self(causal: bool) -> None:
    query, key, value = inputs(1, 17, 3, 0)
    padded = triple(torch.cat((torch.randn(1, 5, 3, 4, dtype=torch.float64), x), 1) for x in (query, key, value))
    mask = (torch.arange(22) < 5)[None]
    expected = dilated_attention(query, key, value, [4, 8], [1, 3], causal=causal)
    output = dilated_attention(*padded, [4, 8], [1, 3], causal=causal, key_padding_mask=mask)
    assert_close(output[:, 5:], expected, "float64")
    assert output[:, :5].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    tensors = inputs(1, 40, 2, 0)
    low = triple(x.detach().to(dtype).requires_grad_() for x in tensors)
    exact = triple(x.detach().double().requires_grad_() for x in low)
    expected = dilated_attention(*exact, [8, 32], [1, 2], causal=True)
    output = dilated_attention(*low, [8, 32], [1, 2], causal=True)
    assert output.dtype == dtype
    assert_close(output.double(), expected, str(dtype).removeprefix("torch."))
    assert all(g.isfinite().all() for g in gradients(output, low))


@pytest.mark.parametrize(
    ("segments", "ratios", "message"),
    [
        ([], [], "must have one entry per branch"),
        ([4, 8], [1], r"segment_lengths \(\[4, 8\]\) and dilation_ratios \(\[1\]\) must have one entry per branch"),
        ([0], [1], r"segment_lengths \(\[0\]\) must be 1 or more"),
        ([4], [0], r"dilation_ratios \(\[0\]\) must be 1 or more"),
    ],
)
def test_wrong_branches_are_refused(segments: list[int], ratios: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dilated_attention(*inputs(1, 8, 2, 0), segments, ratios)


def test_padding_between_tokens_is_refused() -> None:
    mask = torch.tensor([[False, True, False, False]])
    with pytest.raises(ValueError, match="padding between real tokens"):
        dilated_attention(*inputs(1, 4, 2, 0), [4], [1], key_padding_mask=mask)


def test_backends_that_cannot_serve_are_refused() -> None:
    with pytest.raises(ValueError, match=r"flash_attn needs .*; give attention_backend='sdpa'\."):
        dilated_attention(*inputs(1, 4, 2, 0), [4], [1], backend="flash_attn")
    with pytest.raises(ValueError, match=r"attention_backend \('sdp'\) must be"):
        dilated_attention(*inputs(1, 4, 2, 0), [4], [1], backend="sdp")
