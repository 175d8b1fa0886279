"""tests/printed.py: neighbours by rounding agree, and nothing else."""

import pytest

from tests.printed import assert_logged_alike, assert_printed_alike, printed, validated

OUTPUT = """train_inner | epoch 001:      1 / 2 loss=6.547, ppl=93.52, wpb=64, gnorm=35.794, lr=1e-05
valid | epoch 001 | valid on 'valid' subset | loss 5.891 | ppl 59.33 | best_loss 5.5
train | epoch 001 | loss 6.227 | gnorm 1.18"""


def test_figures_are_found_by_name_and_line() -> None:
    assert printed(OUTPUT, "loss") == [6.547, 5.891, 6.227]
    assert printed(OUTPUT, "loss", "train_inner") == [6.547]
    assert printed(OUTPUT, "lr") == [1e-5]
    assert validated(OUTPUT, "loss", "ppl") == [5.891, 59.33]


def test_neighbours_by_rounding_agree() -> None:
    """As two processes on another machine printed them."""
    assert_logged_alike(OUTPUT.replace("35.794", "35.795"), OUTPUT, ["loss", "gnorm", "wpb"])


@pytest.mark.parametrize(("actual", "expected"), [([1.0], [1.01]), ([], []), ([1.0], [1.0, 2.0]), ([64], [65])])
def test_other_figures_do_not(actual: list[float], expected: list[float]) -> None:
    with pytest.raises(AssertionError):
        assert_printed_alike(actual, expected)
