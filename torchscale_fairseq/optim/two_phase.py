"""BitNet's schedule of learning rate and weight decay."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from torchscale_fairseq.core.errors import InputError


@dataclass
class TwoPhaseOptions(FairseqDataclass):
    """Options of ``--lr-scheduler two_phase``."""

    warmup_updates: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": (
                "updates during which the learning rate rises to --lr (default: 375, or a tenth of all updates"
                " if that is less)"
            )
        },
    )
    second_phase_lr: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": (
                "learning rate at which the line of the second phase starts, extended back to the start of "
                "training (default: 2/3 of --lr)"
            )
        },
    )
    second_phase_weight_decay: float = field(default=0.0, metadata={"help": "weight decay in the second phase"})
    second_phase_start: float = field(
        default=0.5, metadata={"help": "start of the second phase, as a fraction of all updates"}
    )
    total_num_update: Optional[float] = field(  # noqa: UP045
        default=None, metadata={"help": "number of updates after which the learning rate is 0 (default: --max-update)"}
    )
    max_update: int = II("optimization.max_update")
    lr: list[float] = II("optimization.lr")  # noqa: RUF009 - a reference, as in fairseq


@register_lr_scheduler("two_phase", dataclass=TwoPhaseOptions)
class TwoPhaseSchedule(FairseqLRScheduler):
    """Two straight lines to 0 at the end of training, the second one lower, and weight decay on the first alone.

    "The Era of 1-bit LLMs: Training Tips, Code and FAQ", as summarised in docs/bitnet.md: ternary models gain from a
    high learning rate, then from a sudden fall of it half-way, where weight decay ends too.

    Raises:
        InputError: an option is out of its range; named as a flag.
    """

    def __init__(self, cfg: TwoPhaseOptions, optimizer: Any):
        super().__init__(cfg, optimizer)
        if len(cfg.lr) != 1:
            raise InputError(f"--lr ({cfg.lr}) must be one value for --lr-scheduler two_phase.")
        self.total = cfg.max_update if cfg.total_num_update is None else cfg.total_num_update
        warmup = min(375, int(self.total) // 10) if cfg.warmup_updates is None else cfg.warmup_updates
        self.warmup = max(warmup, 1)
        if self.total <= warmup:
            raise InputError(
                f"--warmup-updates ({warmup}) must be below --total-num-update ({self.total:g}), "
                "which is --max-update unless given."
            )
        if not 0 <= cfg.second_phase_start <= 1:
            raise InputError(f"--second-phase-start ({cfg.second_phase_start}) must be between 0 and 1.")
        self.peaks = (cfg.lr[0], cfg.lr[0] * 2 / 3 if cfg.second_phase_lr is None else cfg.second_phase_lr)
        self.weight_decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Set learning rate and weight decay after ``num_updates`` updates."""
        second = num_updates >= self.cfg.second_phase_start * self.total
        for group, weight_decay in zip(self.optimizer.param_groups, self.weight_decays, strict=True):
            group["weight_decay"] = self.cfg.second_phase_weight_decay if second else weight_decay
        rise = (num_updates + 1) / self.warmup
        fall = max(1 - num_updates / self.total, 0.0)
        self.optimizer.set_lr(self.peaks[second] * min(rise, fall))
        rate: float = self.optimizer.get_lr()
        return rate
