"""``--criterion linear_cross_entropy``: fairseq's ``cross_entropy``, or with ``--label-smoothing`` its
``label_smoothed_cross_entropy``, without the logits of a whole batch in memory. Values and gradients are theirs."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.dataclass import FairseqDataclass
from omegaconf import II
from torch import Tensor, nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.hooked import does_only
from torchscale_fairseq.core.ops.linear_cross_entropy import linear_cross_entropy, summed_linear_cross_entropy
from torchscale_fairseq.hooks.contracts import finds_unused_parameters, sides_of


@dataclass
class LinearCrossEntropyConfig(FairseqDataclass):
    """Options of the criterion."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "fraction of the target's probability that is spread over the vocabulary"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("linear_cross_entropy", dataclass=LinearCrossEntropyConfig)
class LinearCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """Asks the model for features and projects them itself, a chunk of tokens at a time.

    An output projection with hooks, or with a forward of its own, is called for the whole batch instead.

    The model's decoder needs ``features_only`` and a linear ``output_projection``, like fairseq's Transformers.
    Logged are loss, nll_loss and ppl.

    Raises:
        InputError: label_smoothing is no probability.
    """

    name = "linear_cross_entropy"
    """As --criterion has it."""

    def __init__(self, task: Any, sentence_avg: bool, label_smoothing: float):
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"--label-smoothing ({label_smoothing}) must lie between 0 and 1.")
        super().__init__(task, sentence_avg, label_smoothing)

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss (a scalar, or one per token without ``reduce``), sample size and logging outputs of a batch.

        Raises:
            InputError: the model does not leave out its output projection, or pytorch_ddp searches for unused
                parameters.
        """
        if finds_unused_parameters(model):
            raise InputError(
                f"--criterion {self.name} uses the output projection after the model's forward pass, where "
                "--find-unused-parameters does not see it; drop that option, or take --ddp-backend legacy_ddp, which "
                "does without."
            )
        if not _gives_features(model):
            raise InputError(self._unsuitable())
        net_input = {**sample["net_input"], "features_only": True}
        return super().forward(model, {**sample, "net_input": net_input}, reduce)

    def compute_loss(
        self, model: Any, net_output: tuple[Tensor, Any], sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Loss and negative log-likelihood from features (batch, seq, width)."""
        projection = getattr(sides_of(model).get("decoder"), "output_projection", None)
        if not isinstance(projection, nn.Linear):
            raise InputError(self._unsuitable())
        if not does_only(projection, nn.Linear):
            logits = projection(net_output[0])
            losses: list[Tensor] = super().compute_loss(model, (logits, *net_output[1:]), sample, reduce)
            loss, nll_loss = losses if reduce else (part.squeeze(-1) for part in losses)
            return loss, nll_loss
        features, target = net_output[0].flatten(0, 1), model.get_targets(sample, net_output).flatten()
        options = {"bias": projection.bias, "ignore_index": self.padding_idx, "label_smoothing": self.eps}
        if not reduce:
            return linear_cross_entropy(features, projection.weight, target, **options)
        return summed_linear_cross_entropy(features, projection.weight, target, **options)

    def _unsuitable(self) -> str:
        return (
            f"--criterion {self.name} needs a decoder with features_only and a linear output_projection, which this "
            f"--arch lacks, or an adaptive softmax replaces; use --criterion "
            f"{self.name.replace('linear_', '')} (adaptive_loss for the latter)."
        )


def _gives_features(model: Any) -> bool:
    """Whether the model's decoder can leave out its output projection."""
    decoder = sides_of(model).get("decoder")
    return decoder is not None and "features_only" in inspect.signature(decoder.forward).parameters
