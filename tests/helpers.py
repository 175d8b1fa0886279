"""Tolerances, in one table with reasons, and comparisons that use them."""

import os
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


TOLERANCES = {
    "float64": Tolerance(1e-10, 1e-10, "algebra: two forms of one formula, 1e5 roundings of 1e-16"),
    "float32": Tolerance(1e-5, 1e-5, "the same in working precision; the bound the project promises"),
    "float16": Tolerance(5e-3, 5e-3, "11 bits of mantissa, a few roundings"),
    "bfloat16": Tolerance(3e-2, 3e-2, "8 bits of mantissa, a few roundings"),
    "optimizer": Tolerance(1e-12, 1e-12, "one update in float64: a dozen roundings of 1e-16 of numbers near 1"),
    "printed": Tolerance(2e-3, 1e-5, "figures that fairseq rounds to three decimals: two roundings of 5e-4, and slack"),
    "parity": Tolerance(5e-5, 1e-5, "stated with the golden vectors; their float32 noise is up to 5e-6"),
    "parity_logits": Tolerance(1e-4, 1e-5, "the same for vectors with tied embeddings, whose logits reach 19"),
    "parity_retention": Tolerance(1e-4, 1e-5, "stated with the vectors: official forms differ by 6e-5 from each other"),
    "parity_retention_small": Tolerance(2e-5, 1e-5, "stated with the vectors whose weights are small"),
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


def parity_dir() -> Path:
    """Folder of golden vectors: the repository's copy, or the environment variable PARITY_DIR."""
    return Path(os.environ.get("PARITY_DIR", Path(__file__).parent / "parity" / "data"))


def assert_close(actual: Tensor, expected: Tensor, tolerance: str, what: str = "value") -> None:
    """Compare under a named tolerance."""
    t = TOLERANCES[tolerance]
    torch.testing.assert_close(
        actual, expected, atol=t.atol, rtol=t.rtol, msg=lambda m: f"{what} ({tolerance}: {t.reason})\n{m}"
    )


def assert_gradient_close(actual: Tensor, expected: Tensor, name: str) -> None:
    """Compare a gradient with its golden vector, relative to its largest entry."""
    error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= PARITY_GRADIENT * largest + 1e-8, f"gradient of {name}: error {error:.3g}, largest {largest:.3g}"
