"""``--criterion self_distillation``: DINO's loss."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.self_distillation import self_distillation_losses, warmed_up
from torchscale_fairseq.hooks.options.surfaces import flag_of


@dataclass
class SelfDistillationOptions(FairseqDataclass):
    """Temperatures of the loss."""

    student_temp: float = field(default=0.1, metadata={"help": "temperature of the student's distributions"})
    teacher_temp: float = field(
        default=0.04, metadata={"help": "temperature of the teacher's distributions after the warm-up"}
    )
    warmup_teacher_temp: float = field(
        default=0.04, metadata={"help": "temperature of the teacher's distributions at the first update"}
    )
    warmup_teacher_temp_updates: int = field(
        default=0, metadata={"help": "number of updates in which the teacher's temperature is warmed up linearly"}
    )


@register_criterion("self_distillation", dataclass=SelfDistillationOptions)
class SelfDistillationCriterion(FairseqCriterion):
    """The loss in nats per image, and the entropy of the teacher's distributions. The teacher has collapsed if its
    entropy is 0 or the logarithm of --prototypes.

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(self, cfg: SelfDistillationOptions, task: Any):
        super().__init__(task)
        for name in ("student_temp", "teacher_temp", "warmup_teacher_temp"):
            if not getattr(cfg, name) > 0:
                raise InputError(f"{flag_of(name)} ({getattr(cfg, name)}) must be above 0.")
        if cfg.warmup_teacher_temp_updates < 0:
            raise InputError(
                f"--warmup-teacher-temp-updates ({cfg.warmup_teacher_temp_updates}) must be at least 0; 0 warms "
                "nothing up."
            )
        self.options = cfg

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size (images) and logging outputs of a batch."""
        student, teacher = model(**sample["net_input"])
        losses, entropies = self_distillation_losses(
            student,
            teacher,
            model.center.value,
            student_temp=self.options.student_temp,
            teacher_temp=self.teacher_temp(model.num_updates) if model.training else self.options.teacher_temp,
        )
        if model.training and sample.get("counts", True):
            model.center.observe(teacher)
        images = sample["nsentences"]
        logged = {"loss": losses.detach().sum(), "teacher_entropy": entropies.sum()}
        counts = {"nsentences": images, "ntokens": sample["ntokens"], "sample_size": images}
        return losses.sum(), images, {**logged, **counts}

    def teacher_temp(self, update: int) -> float:
        """The teacher's temperature after a number of updates."""
        options = self.options
        return warmed_up(update, options.warmup_teacher_temp_updates, options.warmup_teacher_temp, options.teacher_temp)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over batches and processes."""
        images = sum(log["sample_size"] for log in logging_outputs)
        for name in ("loss", "teacher_entropy"):
            metrics.log_scalar(name, sum(log[name] for log in logging_outputs) / images, images, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They can."""
        return True
