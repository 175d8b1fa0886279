"""``--criterion moe_cross_entropy``, ``moe_linear_cross_entropy``, ``moe_label_smoothed_cross_entropy``, also
``_with_ctc``, and ``masked_lm_moe_cross_entropy``: those without the prefix, for models with experts."""

from dataclasses import dataclass

from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.criterions.label_smoothed_cross_entropy_with_ctc import (
    LabelSmoothedCrossEntropyWithCtcCriterion,
    LabelSmoothedCrossEntropyWithCtcCriterionConfig,
)
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss

from ._mixture import MixtureCriterion, MixtureOptions
from .linear_cross_entropy import LinearCrossEntropyConfig, LinearCrossEntropyCriterion


@dataclass
class MoECrossEntropyConfig(MixtureOptions, CrossEntropyCriterionConfig):
    """Options of ``moe_cross_entropy``."""


@dataclass
class MoELinearCrossEntropyConfig(MixtureOptions, LinearCrossEntropyConfig):
    """Options of ``moe_linear_cross_entropy``."""


@dataclass
class MoELabelSmoothedCrossEntropyConfig(MixtureOptions, LabelSmoothedCrossEntropyCriterionConfig):
    """Options of ``moe_label_smoothed_cross_entropy``."""


@dataclass
class MoELabelSmoothedCrossEntropyWithCtcConfig(MixtureOptions, LabelSmoothedCrossEntropyWithCtcCriterionConfig):
    """Options of ``moe_label_smoothed_cross_entropy_with_ctc``."""


@dataclass
class MaskedLMMoECrossEntropyConfig(MixtureOptions, MaskedLmConfig):
    """Options of ``masked_lm_moe_cross_entropy``."""


@register_criterion("moe_cross_entropy", dataclass=MoECrossEntropyConfig)
class MoECrossEntropyCriterion(MixtureCriterion, CrossEntropyCriterion):
    """fairseq's ``cross_entropy`` with the experts' balance loss."""


@register_criterion("moe_linear_cross_entropy", dataclass=MoELinearCrossEntropyConfig)
class MoELinearCrossEntropyCriterion(MixtureCriterion, LinearCrossEntropyCriterion):
    """``linear_cross_entropy`` with the experts' balance loss."""

    name = "moe_linear_cross_entropy"


@register_criterion("moe_label_smoothed_cross_entropy", dataclass=MoELabelSmoothedCrossEntropyConfig)
class MoELabelSmoothedCrossEntropyCriterion(MixtureCriterion, LabelSmoothedCrossEntropyCriterion):
    """fairseq's ``label_smoothed_cross_entropy`` with the experts' balance loss."""


@register_criterion("moe_label_smoothed_cross_entropy_with_ctc", dataclass=MoELabelSmoothedCrossEntropyWithCtcConfig)
class MoELabelSmoothedCrossEntropyWithCtcCriterion(MixtureCriterion, LabelSmoothedCrossEntropyWithCtcCriterion):
    """fairseq's ``label_smoothed_cross_entropy_with_ctc`` with the experts' balance loss."""


@register_criterion("masked_lm_moe_cross_entropy", dataclass=MaskedLMMoECrossEntropyConfig)
class MaskedLMMoECrossEntropyCriterion(MixtureCriterion, MaskedLmLoss):
    """fairseq's ``masked_lm`` with the experts' balance loss."""
