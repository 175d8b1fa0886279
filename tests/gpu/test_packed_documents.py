"""Documents of packed rows in torch's flash attention for sequences of different lengths: equal to float64."""

import pytest
import torch
from torch import Tensor

from torchscale_fairseq.core.ops.attention import AttentionMask
from torchscale_fairseq.core.ops.backends import attention
from torchscale_fairseq.core.ops.documents import Documents
from torchscale_fairseq.core.ops.packed_attention import with_row_bias

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BOUND = 2e-2
"""Relative RMS error of bfloat16: a few roundings to 8 bits."""
LENGTH = 300


def results(dtype: torch.dtype, *, causal: bool, dropout: float = 0.0, biased: bool = False) -> list[Tensor]:
    """Output and gradients."""
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = [torch.randn(3, LENGTH, 4, 64, generator=generator, device="cuda").bfloat16() for _ in range(3)]
    query, key, value = (x.to(dtype).requires_grad_() for x in drawn)
    token = torch.arange(LENGTH, device="cuda")
    starts = (token == torch.tensor([[150], [64], [3]], device="cuda")) | (token == 200) | (token == 201)
    by_distance = torch.randn(1, 4, 2 * LENGTH, generator=generator, device="cuda").to(dtype).requires_grad_()
    bias = by_distance[..., token[:, None] - token + LENGTH]
    mask = AttentionMask(causal=causal, documents=Documents.of(starts), bias=bias if biased else None)
    if dtype == torch.bfloat16:
        mask = with_row_bias(mask, dtype)
        assert (mask.documents is None) == biased
    output, _ = attention(query, key, value, mask=mask, dropout=dropout)
    loss = (output.double() * torch.linspace(-1, 1, LENGTH, device="cuda").view(1, -1, 1, 1)).sum()
    return [output.detach(), *torch.autograd.grad(loss, (query, key, value, *([by_distance] if biased else [])))]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_float64(causal: bool, biased: bool) -> None:
    found_and_wanted = (results(dtype, causal=causal, biased=biased) for dtype in (torch.bfloat16, torch.float64))
    pairs = zip(*found_and_wanted, strict=True)
    for name, (found, wanted) in zip(("output", "query", "key", "value", "bias"), pairs, strict=False):
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error < BOUND, f"{name}: relative RMS error {error}"


def test_dropout_in_the_kernel() -> None:
    torch.manual_seed(0)
    dropped, kept = (results(torch.bfloat16, causal=True, dropout=p)[0].float() for p in (0.5, 0.0))
    assert 0.2 < (dropped - kept).norm() / kept.norm() < 2 and torch.isfinite(dropped).all()
