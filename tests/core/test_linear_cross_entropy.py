"""Cross-entropy by chunks against the plain definition: values, gradients, precision, memory."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import assert_close
from torchscale_fairseq.core.ops import linear_cross_entropy as module
from torchscale_fairseq.core.ops.linear_cross_entropy import (
    ALIGNED,
    from_logits,
    linear_cross_entropy,
    summed_linear_cross_entropy,
)

PADDING = 1


def plain_cross_entropy(
    features: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """All logits at once, against written-out target distributions."""
    vocabulary = weight.size(0)
    log_probs = F.log_softmax(F.linear(features, weight, bias).to(torch.promote_types(weight.dtype, torch.float32)), -1)
    one_hot = F.one_hot(target, vocabulary).to(log_probs)
    smooth = one_hot * (1 - label_smoothing) + (1 - one_hot) * label_smoothing / (vocabulary - 1)
    real = target != PADDING
    return -(log_probs * smooth).sum(-1) * real, -(log_probs * one_hot).sum(-1) * real


def problem(
    tokens: int, width: int = 6, vocabulary: int = 11, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, weight, bias and targets, of which every third is padding."""
    generator = torch.Generator().manual_seed(0)
    shapes = (tokens, width), (vocabulary, width), (vocabulary,)
    leaves = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    target = torch.randint(PADDING + 1, vocabulary, (tokens,), generator=generator)
    target[::3] = PADDING
    return leaves[0], leaves[1], leaves[2], target


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 14, 100])
def test_equals_plain_cross_entropy(chunk_size: int | None, with_bias: bool, label_smoothing: float) -> None:
    features, weight, bias, target = problem(14)
    leaves = [features, weight, bias] if with_bias else [features, weight]
    options: dict[str, Any] = {"bias": bias if with_bias else None, "label_smoothing": label_smoothing}
    chunked = linear_cross_entropy(features, weight, target, ignore_index=PADDING, chunk_size=chunk_size, **options)
    plain = plain_cross_entropy(features, weight, target, **options)
    per_token = torch.linspace(-1, 2, 14, dtype=torch.float64)
    gradients = [torch.autograd.grad((loss * per_token).sum(), leaves) for loss, _ in (chunked, plain)]
    for actual, expected in zip((*chunked, *gradients[0]), (*plain, *gradients[1]), strict=True):
        assert_close(actual, expected, "float64")


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_sums(dtype: torch.dtype, chunk_size: int | None, with_bias: bool, label_smoothing: float) -> None:
    features, weight, bias, target = problem(14, dtype=dtype)
    leaves = [features, weight, bias] if with_bias else [features, weight]
    options: dict[str, Any] = {"bias": bias if with_bias else None, "label_smoothing": label_smoothing}
    chunks: dict[str, Any] = {"ignore_index": PADDING, "chunk_size": chunk_size}
    found = summed_linear_cross_entropy(features, weight, target, **chunks, **options)
    expected = [values.sum() for values in plain_cross_entropy(features, weight, target, **options)]
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert found[0].requires_grad and not found[1].requires_grad
    tolerance = str(dtype).removeprefix("torch.")
    gradients = [torch.autograd.grad(loss * 3, leaves) for loss in (found[0], expected[0])]
    for one, other in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert_close(one.detach(), other.detach(), tolerance)


def from_aligned(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """In the place of the kernel."""
    assert logits.stride(0) % ALIGNED == 0, "rows begin at aligned addresses"
    return from_logits(logits, *arguments)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("vocabulary", [11, ALIGNED, ALIGNED + 1])
def test_a_kernel_reads_aligned_rows(
    vocabulary: int, with_bias: bool, label_smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_has_kernel", lambda x: True)
    monkeypatch.setattr(module, "_function_for", lambda logits: from_aligned)
    features, weight, bias, target = problem(14, vocabulary=vocabulary)
    leaves = [features, weight, bias] if with_bias else [features, weight]
    options: dict[str, Any] = {"bias": bias if with_bias else None, "label_smoothing": label_smoothing}
    found = summed_linear_cross_entropy(features, weight, target, ignore_index=PADDING, chunk_size=5, **options)
    expected = [values.sum() for values in plain_cross_entropy(features, weight, target, **options)]
    gradients = [torch.autograd.grad(loss * 3, leaves) for loss in (found[0], expected[0])]
    for one, other in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert_close(one, other, "float64")


@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)], ids=["features", "weight", "none"])
def test_sums_of_what_is_trained_in_part(trained: tuple[bool, bool]) -> None:
    features, weight, _, target = problem(7)
    expected = torch.autograd.grad(plain_cross_entropy(features, weight, target)[0].sum(), (features, weight))
    for leaf, wanted in zip((features, weight), trained, strict=True):
        leaf.requires_grad_(wanted)
    loss, _ = summed_linear_cross_entropy(features, weight, target, ignore_index=PADDING)
    assert loss.requires_grad == any(trained)
    if any(trained):
        loss.backward()
    for leaf, gradient, wanted in zip((features, weight), expected, trained, strict=True):
        assert (leaf.grad is not None) == wanted
        if wanted:
            assert_close(leaf.grad, gradient, "float64")


def test_padding_alone_and_nothing_at_all() -> None:
    for tokens in (7, 0):
        features, weight, _, target = problem(tokens)
        loss, nll_loss = linear_cross_entropy(
            features, weight, target.fill_(PADDING), ignore_index=PADDING, label_smoothing=0.1
        )
        loss.sum().backward()
        assert loss.tolist() == nll_loss.tolist() == [0.0] * tokens
        assert not features.grad.any() and not weight.grad.any()
        summed, _ = summed_linear_cross_entropy(features, weight, target, ignore_index=PADDING, label_smoothing=0.1)
        summed.backward()
        assert summed.item() == 0.0 and not features.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_float32(dtype: torch.dtype) -> None:
    """Their sum over a batch may exceed what float16 holds."""
    features, weight, _, target = problem(50, vocabulary=200, dtype=dtype)
    loss, nll_loss = linear_cross_entropy(features, weight, target, ignore_index=PADDING, label_smoothing=0.1)
    assert loss.dtype == nll_loss.dtype == torch.float32
    plain, _ = plain_cross_entropy(features, weight, target, label_smoothing=0.1)
    assert_close(loss, plain, "float32")
    gradients, expected = (torch.autograd.grad(x.sum(), (features, weight)) for x in (loss, plain))
    for actual, wanted in zip(gradients, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted, str(dtype).removeprefix("torch."))


def test_loss_scale_reaches_the_smallest_gradients() -> None:
    """A probability of 1e-9 is zero in float16, unless the scale is applied before it is rounded."""
    features = torch.tensor([[1.0, 0.0]], dtype=torch.float16)
    bias = torch.tensor([20.7, 0.0, 0.0], dtype=torch.float16)
    scale = 2.0**14
    for function in (linear_cross_entropy, summed_linear_cross_entropy):
        weight = torch.zeros(3, 2, dtype=torch.float16, requires_grad=True)
        loss, _ = function(features, weight, torch.tensor([0]), bias=bias)
        (loss.sum() * scale).backward()
        assert weight.grad[1, 0].item() / scale == pytest.approx(1.02e-9, rel=0.03)


def test_the_sum_may_be_changed_in_place() -> None:
    """fairseq multiplies the loss of a batch that does not count by 0."""
    features, weight, bias, target = problem(14)
    loss, nll_loss = summed_linear_cross_entropy(features, weight, target, bias=bias, ignore_index=PADDING)
    loss *= 0
    nll_loss *= 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (features, weight, bias)))


def test_autocast() -> None:
    features, weight, _, target = problem(14, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        chunked, _ = linear_cross_entropy(features, weight, target, ignore_index=PADDING)
        plain, _ = plain_cross_entropy(features, weight, target)
        exact, _ = plain_cross_entropy(features.double(), weight.double(), target)
        summed, _ = summed_linear_cross_entropy(features, weight, target, ignore_index=PADDING)
    assert_close(chunked, plain, "float32")
    assert_close(summed, plain.sum(), "float32")
    assert not torch.allclose(chunked.double(), exact, atol=1e-5), "autocast did nothing"
    gradients = [torch.autograd.grad(loss.sum(), (features, weight)) for loss in (chunked, summed, plain)]
    for chunk, total, expected in zip(*gradients, strict=True):
        assert_close(chunk, expected, "bfloat16")
        assert_close(total, expected, "bfloat16")


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors made inside that are alive at once, and their maximum."""

    def __init__(self, *made_before: Tensor) -> None:
        super().__init__()
        self.storages = {tensor.untyped_storage()._cdata for tensor in made_before}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.storages:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.storages.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size


def copies_of_logits(loss_of: Callable[[Tensor, Tensor, Tensor], Tensor], tokens: int, *, train_weight: bool) -> float:
    """Peak memory of a forward and backward pass, as a multiple of the logits of the whole batch."""
    features, weight, _, target = problem(tokens, vocabulary=600, dtype=torch.float32)
    weight.requires_grad_(train_weight)
    with PeakMemory(features, weight, target) as memory:
        loss_of(features, weight, target).sum().backward()
    made = [leaf.grad for leaf in (features, weight) if leaf.grad is not None]
    assert memory.now == sum(gradient.nbytes for gradient in made)
    return memory.peak / (tokens * weight.size(0) * 4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("tokens", "train_weight", "bound"),
    [(8, False, 0.8), (24, False, 0.8), (24, True, 1.1), (240, False, 0.1), (240, True, 0.15)],
)
def test_memory(tokens: int, train_weight: bool, bound: float, label_smoothing: float) -> None:
    """Three chunks, which are a quarter of the logits, or for many tokens as large as the weight. Next to them the
    gradient of the weight. ``cross_entropy`` holds logits, log-probabilities and a gradient at once."""

    def chunked(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return linear_cross_entropy(features, weight, target, ignore_index=PADDING, label_smoothing=label_smoothing)[0]

    def stock(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(features, weight), target, ignore_index=PADDING, reduction="sum")

    assert copies_of_logits(chunked, tokens, train_weight=train_weight) < bound
    assert copies_of_logits(stock, tokens, train_weight=train_weight) > 2.9


def test_one_gradient_of_the_weight_in_memory() -> None:
    """Each chunk adds what it computes to it, and holds nothing as large next to it."""
    features, weight, _, target = problem(24, width=64, vocabulary=600, dtype=torch.float32)
    with PeakMemory(features, weight, target) as memory:
        summed_linear_cross_entropy(features, weight, target, ignore_index=PADDING, chunk_size=2)
    assert memory.peak < 1.5 * weight.nbytes
