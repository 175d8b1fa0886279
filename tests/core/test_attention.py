"""Attention: the definition against hand-made cases, backends against the definition."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental import symbolic_shapes

from tests.helpers import assert_close
from torchscale_fairseq.core.ops import backends
from torchscale_fairseq.core.ops.attention import AttentionMask
from torchscale_fairseq.core.ops.backends import CUDNN_FROM, attention


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_definition_by_hand() -> None:
    """Two keys with scores 0 and ln 3 get weights 1/4 and 3/4."""
    query = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    key = torch.tensor([[0.0, 5.0], [math.log(3), 7.0]], dtype=torch.float64).view(1, 2, 1, 2)
    value = torch.tensor([[4.0, 0.0], [0.0, 8.0]], dtype=torch.float64).view(1, 2, 1, 2)
    output, log_sum_exp = attention(query, key, value, scale=1.0, backend="naive", need_log_sum_exp=True)
    assert_close(output.flatten(), torch.tensor([1.0, 6.0], dtype=torch.float64), "float64")
    assert_close(log_sum_exp.flatten(), torch.tensor([math.log(4)], dtype=torch.float64), "float64")


def test_causal_queries_are_the_last_tokens() -> None:
    """With 2 queries and 5 keys, the first query sees 4 keys: the mean of the values 0..3 is 1.5."""
    query, key = torch.zeros(1, 2, 1, 4), torch.zeros(1, 5, 1, 4)
    value = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 1, 4)
    for backend in ("naive", "sdpa"):
        output, _ = attention(query, key, value, mask=AttentionMask(causal=True), backend=backend)
        assert_close(output[0, :, 0, 0], torch.tensor([1.5, 2.0]), "float32", backend)


def test_blockwise_causal_attention_by_hand() -> None:
    """Blocks of two tokens: 0 1 | 2 3 | 4. Equal scores, so that each output is the mean of the visible values."""
    query = key = torch.zeros(1, 5, 1, 4)
    value = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 1, 4)
    means = torch.tensor([0.0, 0.5, 1.0, 1.5, 3.0])
    for backend in ("naive", "sdpa"):
        output, _ = attention(query, key, value, mask=AttentionMask(causal=True, block=2), backend=backend)
        assert_close(output[0, :, 0, 0], means, "float32", backend)
        last, _ = attention(query[:, 4:], key, value, mask=AttentionMask(causal=True, block=2), backend=backend)
        assert_close(last[0, :, 0, 0], means[4:], "float32", backend)


def test_blockwise_causal_attention_counts_from_the_first_real_token() -> None:
    """A padding token in front moves the blocks on: - | 0 1 | 2 3."""
    query = key = torch.zeros(1, 5, 1, 4)
    value = torch.tensor([9.0, 0.0, 1.0, 2.0, 3.0]).view(1, 5, 1, 1).expand(1, 5, 1, 4)
    padding = torch.tensor([[True, False, False, False, False]])
    for backend in ("naive", "sdpa"):
        output, _ = attention(
            query, key, value, mask=AttentionMask(causal=True, block=2, key_padding_mask=padding), backend=backend
        )
        assert_close(output[0, :, 0, 0], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.5]), "float32", backend)


def test_merging_by_log_sum_exp() -> None:
    """Attention over two halves of the keys, mixed by their log-sum-exps, is attention over all keys."""
    query, key, value = random(2, 3, 2, 4), random(2, 8, 2, 4, seed=1), random(2, 8, 2, 4, seed=2)
    whole, whole_lse = attention(query, key, value, backend="naive", need_log_sum_exp=True)
    parts = [
        attention(query, key[:, s], value[:, s], backend="naive", need_log_sum_exp=True)
        for s in (slice(0, 3), slice(3, 8))
    ]
    lse = torch.stack([p[1] for p in parts])
    weights = lse.softmax(0).transpose(2, 3).unsqueeze(-1)
    assert_close((weights * torch.stack([p[0] for p in parts])).sum(0), whole, "float64")
    assert_close(lse.logsumexp(0), whole_lse, "float64")


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 7),
    extra_keys=st.integers(0, 5),
    causal=st.booleans(),
    padded=st.booleans(),
    biased=st.booleans(),
    block=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_sdpa_matches_naive(
    batch: int, queries: int, extra_keys: int, causal: bool, padded: bool, biased: bool, block: int, seed: int
) -> None:
    """Values and gradients, rows that see nothing included: they are zero and give no NaN."""
    keys = queries + extra_keys
    inputs = [random(batch, n, 2, 4, seed=seed + i).requires_grad_() for i, n in enumerate((queries, keys, keys))]
    mask = random(batch, keys, seed=seed) > 0.3 if padded else None
    bias = random(1, 2, queries, keys, seed=seed + 9) if biased else None
    results = []
    for backend in ("naive", "sdpa"):
        seen = AttentionMask(causal=causal, block=block if causal else 0, key_padding_mask=mask, bias=bias)
        output, _ = attention(*inputs, mask=seen, backend=backend)
        gradients = torch.autograd.grad((output * random(*output.shape, seed=5)).sum(), inputs)
        results.append((output, *gradients))
    for name, naive, fused in zip(("output", "query", "key", "value"), *results, strict=True):
        assert_close(fused, naive, "float64", name)
    if mask is not None:
        blind = mask.all(1)
        assert (results[1][0][blind] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_lower_dtypes(dtype: str, backend: str) -> None:
    query, key, value = (random(2, 9, 2, 8, seed=i) for i in range(3))
    exact, _ = attention(query, key, value, mask=AttentionMask(causal=True), backend="naive")
    low = [x.to(getattr(torch, dtype)) for x in (query, key, value)]
    output, _ = attention(*low, mask=AttentionMask(causal=True), backend=backend)
    assert output.dtype == low[0].dtype
    assert_close(output.double(), exact, dtype)


def test_dropout_keeps_the_mean() -> None:
    query, key = torch.zeros(1, 1, 1, 2), torch.zeros(1, 4000, 1, 2)
    value = torch.ones(1, 4000, 1, 2)
    for backend in ("naive", "sdpa"):
        torch.manual_seed(0)
        output, _ = attention(query, key, value, dropout=0.5, backend=backend)
        assert 0.9 < output.mean() < 1.1 and (output != 1).all()


def test_backends_refuse_what_they_cannot_serve() -> None:
    x = torch.zeros(1, 1, 1, 2)
    with pytest.raises(
        ValueError, match=r"attention_backend=sdpa gives no log-sum-exp; give attention_backend='naive'\."
    ):
        attention(x, x, x, need_log_sum_exp=True)
    with pytest.raises(ValueError, match=r"attention_backend=flash_attn needs .*; give attention_backend='sdpa'\."):
        attention(x, x, x, backend="flash_attn")
    with pytest.raises(ValueError, match=r"attention_backend \('cudnn'\) must be one of sdpa, naive, flash_attn"):
        attention(x, x, x, backend="cudnn")


class OnGpu:
    """What the choice of kernels asks of a key on a GPU."""

    is_cuda = True

    def __init__(self, length: int):
        self.length = length

    def size(self, axis: int) -> int:
        return self.length


@pytest.mark.parametrize(("length", "chosen_from"), [(CUDNN_FROM - 1, False), (CUDNN_FROM, True)])
def test_cudnn_serves_long_keys_alone(length: int, chosen_from: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing kernel leaves torch's setting as it was."""

    def failing(*_: Any, **__: Any) -> None:
        assert torch.backends.cuda.cudnn_sdp_enabled() is chosen_from
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", failing)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(RuntimeError, match="out of memory"):
        backends._by_torch(None, OnGpu(length), None)  # type: ignore[arg-type]
    assert torch.backends.cuda.cudnn_sdp_enabled() is before


@pytest.mark.skipif(not hasattr(symbolic_shapes, "has_static_value"), reason="torch does not tell")
def test_cudnn_serves_no_code_for_many_shapes() -> None:
    """It would plan anew for each of them."""
    chosen_from = []

    def choose(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        class Run(torch.fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                if target is torch.nn.functional.scaled_dot_product_attention:
                    chosen_from.append(torch.backends.cuda.cudnn_sdp_enabled())
                return super().call_function(target, args, kwargs)

        return Run(graph).run

    compiled = torch.compile(lambda x: attention(x, x, x)[0], backend=choose, fullgraph=True)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    for batch, length in ((2, 5), (3, 7), (4, 9)):
        compiled(torch.randn(batch, length, 2, 8))
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    assert chosen_from == [before, False, False]
