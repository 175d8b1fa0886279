"""Statistics of an update of images stay on the device: on the meta device, which has no values, reading them fails."""

from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.logging import metrics

from torchscale_fairseq.criterions._images import ImageCriterion
from torchscale_fairseq.criterions.image_classification import ImageClassificationCriterion
from torchscale_fairseq.criterions.image_text_contrastive import ImageTextContrastiveCriterion


def outputs(device: str) -> list[dict[str, Any]]:
    """Of two batches, of 2 and 4 images."""
    scalars = [torch.tensor(value, device=device) for value in (3.0, 9.0)]
    right = [torch.tensor(value, device=device) for value in (1, 2)]
    return [
        {"loss": scalar, "scale": scalar, "counts": {"accuracy": count}, "sample_size": size}
        for scalar, count, size in zip(scalars, right, (2, 4), strict=True)
    ]


@pytest.mark.parametrize("criterion", [ImageClassificationCriterion, ImageTextContrastiveCriterion])
def test_the_host_reads_nothing(criterion: Any) -> None:
    with metrics.aggregate(new_root=True) as meters:
        criterion.reduce_metrics(outputs("meta"))
    assert meters["loss"].sum.is_meta


def test_means() -> None:
    with metrics.aggregate(new_root=True) as meters:
        ImageCriterion.reduce_metrics(outputs("cpu"))
    assert meters.get_smoothed_values() == {"loss": 2.0, "accuracy": 50.0}
