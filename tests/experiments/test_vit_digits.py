"""ViTs on digits: their sizes, and the choice of the better rate."""

import pytest

pytest.importorskip("sklearn")

from scripts.experiments import vit_digits


@pytest.mark.parametrize("name", vit_digits.OURS)
def test_models_have_the_size_of_deits_tiny(name: str) -> None:
    model = vit_digits.build(name)
    layers = 12 * (4 * 192**2 + 4 * 192 + 8 * 192**2 + 5 * 192 + 4 * 192)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(layers, rel=0.01)


def test_the_sizes_are_timms() -> None:
    pytest.importorskip("timm")
    ours, theirs = (sum(p.numel() for p in vit_digits.build(name).parameters()) for name in ("vit_tiny", "timm"))
    assert ours == theirs


def test_the_better_rate_counts() -> None:
    runs = [
        {"model": model, "learning_rate": rate, "accuracy": 90 + 1000 * rate + seed, "seconds": 2.0}
        for model in vit_digits.MODELS
        for rate in vit_digits.RATES
        for seed in range(2)
    ]
    found = vit_digits.summary({"runs": runs})
    assert set(found) == set(vit_digits.MODELS)
    assert all(best["learning_rate"] == 1e-3 and best["accuracy"] == 91.5 for best in found.values())
