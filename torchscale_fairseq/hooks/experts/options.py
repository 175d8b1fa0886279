"""Check fairseq's own options against mixtures of experts."""

from typing import Any

from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed


def prepare_options(cfg: Any, *, several_processes: bool) -> None:
    """Set the options that a model with experts needs, and refuse those that would destroy it.

    Args:
        cfg: fairseq's configuration; changed in place.
        several_processes: experts are held by several processes.

    Raises:
        OptionError: the options average or split what is not one set of parameters.
    """
    cfg.common.fp16_no_flatten_grads = True  # flattened, experts could not be told from the rest
    if several_processes:
        cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
    with spelt_as_typed():
        _refuse_averaging(cfg)
        if several_processes:
            _refuse_shared_state(cfg)


def _refuse_averaging(cfg: Any) -> None:
    sharding, backend = cfg.distributed_training.zero_sharding, cfg.distributed_training.ddp_backend
    if sharding != "none":
        option, reason = "distributed_training.zero_sharding", "splits the optimizer's state over processes"
        raise _refusal(option, sharding, reason, {option: "none"})
    if cfg.optimization.use_bmuf:
        reason, remedy = "averages parameters over processes", {"optimization.use_bmuf": None}
        raise _refusal("optimization.use_bmuf", True, reason, remedy)
    if backend in ("slowmo", "slow_mo"):
        option, reason = "distributed_training.ddp_backend", "averages parameters over processes"
        raise _refusal(option, backend, reason, {option: "legacy_ddp"}, {option: "pytorch_ddp"})


def _refuse_shared_state(cfg: Any) -> None:
    if cfg.common.amp:
        ways = ({"common.amp": None, f"common.{precision}": True} for precision in ("fp16", "bf16"))
        raise _refusal("common.amp", True, "lets each process skip updates by itself", *ways)
    if getattr(cfg.optimizer, "_name", None) == "adafactor":
        raise _refusal("optimizer", "adafactor", "keeps state that experts share", {"optimizer": "adam"})


def _refusal(option: str, value: Any, reason: str, *ways: dict[str, Any]) -> OptionError:
    condition = f"{{{option}=}} {reason}, but processes hold experts of their own ({{moe_freq}}, {{moe_expert_count}})"
    return OptionError(option, value, condition, ways)
