"""An update on images leaves what it computes on the device: on the meta device, which has no values, reading fails."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.logging import metrics

from torchscale_fairseq.core.config import ViTConfig
from torchscale_fairseq.criterions._images import ImageCriterion
from torchscale_fairseq.criterions.image_classification import ImageClassificationCriterion, ImageClassificationOptions
from torchscale_fairseq.criterions.image_text_contrastive import ImageTextContrastiveCriterion
from torchscale_fairseq.models.vit import ViTModel


def outputs(device: str) -> list[dict[str, Any]]:
    """Of two batches, of 2 and 4 images."""
    scalars = [torch.tensor(value, device=device) for value in (3.0, 9.0)]
    right = [torch.tensor(value, device=device) for value in (1, 2)]
    return [
        {"loss": scalar, "scale": scalar, "count_accuracy": count, "sample_size": size}
        for scalar, count, size in zip(scalars, right, (2, 4), strict=True)
    ]


@pytest.mark.parametrize("criterion", [ImageClassificationCriterion, ImageTextContrastiveCriterion])
def test_the_host_reads_nothing(criterion: Any) -> None:
    with metrics.aggregate(new_root=True) as meters:
        criterion.reduce_metrics(outputs("meta"))
    assert meters["loss"].sum.is_meta


def model_and_batch(device: str) -> tuple[ViTModel, dict[str, Any]]:
    config = ViTConfig(img_size=8, patch_size=4, encoder_layers=2, encoder_embed_dim=8, encoder_attention_heads=2)
    with torch.device(device):
        patches = torch.zeros(2, 4, 3, 4, 4, dtype=torch.uint8)
        sample = {"net_input": {"patches": patches}, "target": torch.zeros(2, dtype=torch.long)}
        return ViTModel(config, num_classes=5), {**sample, "nsentences": 2, "ntokens": 8}


def classification() -> ImageClassificationCriterion:
    return ImageClassificationCriterion(ImageClassificationOptions(label_smoothing=0.1), SimpleNamespace())


def test_forward_and_backward_read_nothing() -> None:
    model, sample = model_and_batch("meta")
    loss, _, _ = classification()(model, sample)
    loss.backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_figures_of_an_update_are_sums(training: bool) -> None:
    """Processes add them up, where those of a validation are gathered, which no process can do without a wait."""
    (model, sample), criterion = model_and_batch("cpu"), classification()
    _, _, logged = criterion.train(training)(model.train(training), sample)
    assert "count_accuracy" in logged
    are_sums = all(isinstance(figure, int) or figure.dim() == 0 for figure in logged.values())
    assert are_sums == training == criterion.logging_outputs_can_be_summed()


def test_means() -> None:
    with metrics.aggregate(new_root=True) as meters:
        ImageCriterion.reduce_metrics(outputs("cpu"))
    assert meters.get_smoothed_values() == {"loss": 2.0, "accuracy": 50.0}
