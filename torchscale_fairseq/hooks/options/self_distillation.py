"""Options that contradict ``--task self_distillation``, whose teacher every process updates as a whole."""

from collections.abc import Iterator
from typing import Any

from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.model_options import model_options

BACKEND = "distributed_training.ddp_backend"
REPLICATING = ("c10d", "pytorch_ddp", "legacy_ddp", "no_c10d")
"""Backends after whose updates all processes have the same whole student."""


def check_self_distillation(cfg: Any) -> None:
    """Refuse what a student and its teacher cannot be trained with.

    Args:
        cfg: fairseq's configuration.

    Raises:
        OptionError: options contradict each other.
    """
    if getattr(cfg.task, "_name", None) != "self_distillation":
        return
    for error in _contradictions(cfg):
        raise error


def _contradictions(cfg: Any) -> Iterator[OptionError]:
    options, backend = model_options(cfg.model), cfg.distributed_training.ddp_backend
    if backend not in REPLICATING:
        yield _contradiction(BACKEND, "whose teacher follows whole weights in each process", backend, "pytorch_ddp")
    if cfg.common.amp:
        yield _contradiction("common.amp", "whose teacher would follow updates that are skipped", True)
    if cfg.optimization.use_bmuf:
        yield _contradiction("optimization.use_bmuf", "whose processes must update one student together", True)
    if options.seq_parallel:
        yield _contradiction("seq_parallel", "which reads whole crops", True)
    if options.lora_rank:
        yield _contradiction("lora_rank", "whose teacher follows all weights", options.lora_rank)
    for name in ("moe_freq", "encoder_moe_freq"):
        if getattr(cfg.model, name, 0):
            yield _contradiction(name, "whose loss does not balance experts", getattr(cfg.model, name))


def _contradiction(option: str, reason: str, value: Any, instead: Any = None) -> OptionError:
    condition = f"{{{option}=}} cannot be combined with {{task}} self_distillation, {reason}"
    return OptionError(option, value, condition, [{option: instead}])
