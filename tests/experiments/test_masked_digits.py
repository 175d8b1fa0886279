"""Digits of which a tenth have labels: their splits, and training in the small form."""

import pytest

pytest.importorskip("sklearn")

from scripts.experiments import common, masked_digits


def test_splits_have_each_digit_in_proportion_and_no_image_twice() -> None:
    train, few, held_out = masked_digits.split(1)
    assert [len(images.digits) for images in (train, few, held_out)] == [1437, 143, 360]
    for images in (train, few, held_out):
        shares = images.digits.bincount(minlength=10) / len(images.digits)
        assert ((shares > 0.08) & (shares < 0.12)).all()
    assert train.pixels.shape == (1437, 1, 8, 8) and train.pixels.min() == -1 and train.pixels.max() == 1
    others = masked_digits.split(2)[2]
    assert not others.digits.equal(held_out.digits)


def test_each_start_has_each_seed() -> None:
    runs = masked_digits.runs(False, 1)
    assert {(run.start, run.seed) for run in runs} == {(s, n) for s in masked_digits.STARTS for n in range(1, 6)}
    longest = {run.start: run.pretraining + run.updates for run in runs}
    assert longest[masked_digits.PRETRAINED] == longest[masked_digits.LONGER] == longest[masked_digits.ALL_LABELS]


@pytest.mark.slow
def test_the_small_form_learns() -> None:
    """Hidden patches better than by their mean, and digits better than by chance."""
    run = next(run for run in masked_digits.runs(True, 1) if run.start == masked_digits.PRETRAINED)
    found = masked_digits.measure(run, common.Text(b"", b""), "cpu")
    assert found["patch_loss"] < 0.9 and found["accuracy"] > 20
