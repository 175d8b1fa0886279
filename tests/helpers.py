"""Tolerances, in one table with reasons, and comparisons that use them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Absolute and relative tolerance, and why they are what they are."""

    atol: float
    rtol: float
    reason: str
    of_largest: bool = False
    """Whether ``atol`` is a fraction of the largest expected entry. Rounding grows with the numbers that a sum is made
    of, so a bound on a whole tensor that is right for logits near 1 is too tight for logits near 20."""


TOLERANCES = {
    "float64": Tolerance(1e-10, 1e-10, "algebra: two forms of one formula, 1e5 roundings of 1e-16"),
    "float32": Tolerance(1e-5, 1e-5, "the same in working precision; the bound the project promises"),
    "float16": Tolerance(5e-3, 5e-3, "11 bits of mantissa, a few roundings"),
    "bfloat16": Tolerance(3e-2, 3e-2, "8 bits of mantissa, a few roundings"),
    "optimizer": Tolerance(1e-12, 1e-12, "one update in float64: a dozen roundings of 1e-16 of numbers near 1"),
    "printed": Tolerance(2e-3, 1e-5, "figures that fairseq rounds to three decimals: two roundings of 5e-4, and slack"),
    "parity": Tolerance(2e-5, 0, "float32 noise of a model: golden vectors are met within 2e-6", of_largest=True),
    "parity_retention": Tolerance(
        5e-5, 0, "the official forms of retention differ by up to 9e-6 from each other in two layers", of_largest=True
    ),
    "parity_exact": Tolerance(1e-6, 1e-6, "stated with the vectors: single operations"),
    "parity_operator": Tolerance(1e-5, 1e-5, "stated with the vectors: one module"),
    "parity_half": Tolerance(2e-3, 2e-3, "stated with the vectors for float16"),
    "parity_bfloat16": Tolerance(2e-2, 2e-2, "stated with the vectors for bfloat16"),
}
PARITY_GRADIENT = 1e-4
"""Of each gradient's largest entry, as stated with the golden vectors."""
RELATIVE_ERROR_OF_KERNELS = {torch.float16: 5e-3, torch.bfloat16: 1e-2}
"""In the mean, of kernels: what flash-linear-attention's own tests allow, and twice that for 8 bits of mantissa, of
which its kernels lose the last in some five roundings on the way."""


OFFICIAL_VECTORS = Path(__file__).parent / "parity" / "data"
"""The repository's golden vectors."""


def parity_dir() -> Path:
    """Folder of golden vectors: the repository's, or the environment variable PARITY_DIR."""
    return Path(os.environ.get("PARITY_DIR", OFFICIAL_VECTORS))


@contextmanager
def kept_for_backward() -> Iterator[list[int]]:
    """Entries of each tensor that autograd keeps for the backward pass of what runs meanwhile."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


def pair(tensors: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """A sequence that holds two tensors, for a type checker; queries and keys, say."""
    first, second = tensors
    return first, second


def triple(tensors: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A sequence that holds three tensors, for a type checker; queries, keys and values, say."""
    first, second, third = tensors
    return first, second, third


def assert_close(actual: Tensor, expected: Tensor, tolerance: str, what: str = "value") -> None:
    """Compare under a named tolerance."""
    t = TOLERANCES[tolerance]
    atol = t.atol * max(expected.abs().max().item(), 1e-6) if t.of_largest and expected.numel() else t.atol
    torch.testing.assert_close(
        actual, expected, atol=atol, rtol=t.rtol, msg=lambda m: f"{what} ({tolerance}: {t.reason})\n{m}"
    )


def assert_gradient_close(actual: Tensor, expected: Tensor, name: str) -> None:
    """Compare a gradient with its golden vector, relative to its largest entry."""
    error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= PARITY_GRADIENT * largest + 1e-8, f"gradient of {name}: error {error:.3g}, largest {largest:.3g}"
