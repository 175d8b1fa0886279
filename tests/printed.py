"""Figures as fairseq's commands print them: rounded, so that two runs that agree may print neighbouring numbers."""

import re
from collections.abc import Sequence

import torch

from tests.helpers import assert_close

NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


def printed(output: str, name: str, lines: str = "") -> list[float]:
    """Every figure that stands after ``name``, as in ``gnorm=1.5`` or ``| loss 3.21``, in the order of the output.

    Args:
        lines: text that a line contains if its figures count, such as ``train_inner``.
    """
    found = [re.findall(rf"[ |]{name}[= ]{NUMBER}", line) for line in output.splitlines() if lines in line]
    return [float(figure) for line in found for figure in line]


def validated(output: str, *names: str) -> list[float]:
    """Figures of the last validation of the subset ``valid``."""
    return [printed(output, name, "valid on 'valid' subset")[-1] for name in names]


def assert_printed_alike(actual: Sequence[float], expected: Sequence[float], what: str = "figures") -> None:
    """Compare figures that both sides have rounded to three decimals or more."""
    assert len(actual) == len(expected) > 0, f"{what}: {list(actual)} and {list(expected)}"
    ours, theirs = (torch.tensor(figures, dtype=torch.float64) for figures in (actual, expected))
    assert_close(ours, theirs, "printed", what)


def assert_logged_alike(output: str, expected: str, names: Sequence[str], lines: str = "") -> None:
    """Compare all figures of these names that two runs print."""
    for name in names:
        assert_printed_alike(printed(output, name, lines), printed(expected, name, lines), name)
