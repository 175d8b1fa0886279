"""Attention kernels, each against autograd through the definition."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import assert_close, triple
from torchscale_fairseq.core.ops.attention import naive_attention
from torchscale_fairseq.core.ops.partial_attention import (
    NAIVE,
    Efficient,
    FlashOnCPU,
    Kernel,
    Partial,
    PartialRequest,
    Scores,
    choose_kernel,
)

KERNELS = {"naive": NAIVE, "flash_on_cpu": FlashOnCPU()}


def operands(queries: int, keys: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def hidden_keys(keys: int) -> Tensor:
    hidden = torch.rand(2, 3, 1, keys, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[..., 0] = False
    return hidden


@pytest.mark.parametrize("form", ["plain", "causal", "hidden"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_kernel_is_attention(kernel: Kernel, form: str) -> None:
    tensors = operands(5, 5 if form == "causal" else 7)
    hidden = hidden_keys(7) if form == "hidden" else None
    scores = Scores(form == "causal", hidden, 0.3, 0.0)
    visible = torch.ones(5, 5).tril().bool() if form == "causal" else None if hidden is None else ~hidden
    expected, log_sum_exp = naive_attention(
        *(x.transpose(1, 2) for x in tensors), visible=visible, bias=None, scale=0.3, dropout=0.0
    )
    expected = expected.transpose(1, 2)
    detached = triple(x.detach() for x in tensors)
    partial = kernel.forward(*detached, scores)
    assert_close(partial.output, expected, "float64")
    assert_close(partial.log_sum_exp, log_sum_exp, "float64")
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, tensors, gradient)
    for found, exact in zip(kernel.backward(gradient, *detached, partial, scores), wanted, strict=True):
        assert_close(found, exact, "float64")


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_parts_of_a_softmax_give_its_gradient(kernel: Kernel) -> None:
    """Keys in two halves, each with the output and the log-sum-exp of all; and a query that is left out."""
    tensors = operands(4, 6)
    scores = Scores(False, None, 0.3, 0.0)
    query, key, value = (x.detach() for x in tensors)
    whole = NAIVE.forward(query, key, value, scores)
    gradient = torch.randn(query.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = NAIVE.backward(gradient, query, key, value, whole, scores)
    halves = [
        kernel.backward(gradient, query, key[:, :, half], value[:, :, half], whole, scores)
        for half in (slice(2), slice(2, 6))
    ]
    assert_close(halves[0][0] + halves[1][0], expected[0], "float64")
    for index in (1, 2):
        assert_close(torch.cat([half[index] for half in halves], 2), expected[index], "float64")
    out = torch.zeros(2, 3, 4, dtype=torch.bool)
    out[..., 1] = True
    without = Partial(whole.output, whole.log_sum_exp.masked_fill(out, float("inf")), None)
    found = kernel.backward(gradient, query, key, value, without, scores)
    expected = NAIVE.backward(gradient.masked_fill(out[..., None], 0.0), query, key, value, whole, scores)
    assert not found[0][:, :, 1].any()
    for x, y in zip(found[1:], expected[1:], strict=True):
        assert_close(x, y, "float64")


class Calls(TorchDispatchMode):
    """What one operator is called with."""

    def __init__(self, operator: Any):
        super().__init__()
        self._operator = operator
        self.arguments: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self._operator:
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head_dim", [4, 64])
def test_the_memory_efficient_kernel_gets_heads_beside_each_other(head_dim: int) -> None:
    """In half precision it steps from token to token by all heads, and does not look at the output's strides."""
    tensors = [torch.empty(2, 3, 16, head_dim, dtype=torch.float16, device="meta") for _ in range(5)]
    gradient, query, key, value, output = tensors
    scores = Scores(False, None, 0.3, 0.0)
    random = [torch.empty((), dtype=torch.int64, device="meta") for _ in range(2)]
    whole = Partial(output, torch.empty(2, 3, 16, device="meta"), random)
    with Calls(torch.ops.aten._scaled_dot_product_efficient_attention_backward.default) as calls:
        Efficient().backward(gradient, query, key, value, whole, scores)
    given = calls.arguments[0][5]
    channels = given.size(3)
    assert given.stride() == (16 * 3 * channels, channels, 3 * channels, 1)


def test_choice() -> None:
    x = torch.zeros(1, 1, 4, 8)
    assert isinstance(choose_kernel(PartialRequest(x, x, x, Scores(True, None, 1.0, 0.0)), "sdpa"), FlashOnCPU)
    assert choose_kernel(PartialRequest(x, x, x, Scores(True, None, 1.0, 0.1)), "sdpa") is NAIVE
    x = x.to("meta")
    assert choose_kernel(PartialRequest(x, x, x, Scores(True, None, 1.0, 0.0)), "sdpa") is NAIVE
