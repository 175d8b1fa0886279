"""--layer-decay: each layer has a learning rate of its own.

The optimizer keeps one group of parameters in the model's order, so that schedules, logs and checkpoints are those of
a run without the option, and runs with and without it resume each other. The group is divided for a step alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.model_options import model_options
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed
from torchscale_fairseq.hooks.sharding.options import is_fully_sharded


def check_layer_decay(cfg: Any) -> None:
    """Refuse options that leave no group of the model's own parameters to divide.

    Args:
        cfg: fairseq's configuration.

    Raises:
        OptionError: the value is out of its range, or options contradict each other.
    """
    decay, common = model_options(cfg.model).layer_decay, cfg.common
    with spelt_as_typed():
        if not 0 < decay <= 1:
            raise OptionError(
                "layer_decay", decay, "{layer_decay()} must be above 0 and at most 1", [{"layer_decay": 0.65}]
            )
        if decay == 1:
            return
        if common.fp16 and not (common.memory_efficient_fp16 or common.fp16_no_flatten_grads or is_fully_sharded(cfg)):
            ways: list[dict[str, Any]] = [{"common.fp16_no_flatten_grads": True}, {"common.fp16": None}]
            raise _contradiction(decay, "{common.fp16}, which makes all parameters one", *ways)
        if cfg.distributed_training.zero_sharding == "os":
            option = "distributed_training.zero_sharding"
            raise _contradiction(decay, f"{{{option}}} os, which divides the parameters itself", {option: None})
        if cfg.optimizer._name == "composite":
            reason = "{optimizer} composite, which has groups of its own"
            raise _contradiction(decay, reason, {"optimizer": "adam"})
        if getattr(cfg.optimizer, "relative_step", False):
            option = "optimizer.relative_step"
            raise _contradiction(decay, f"{{{option}}}, which sets the learning rate itself", {option: None})


def _contradiction(decay: float, what: str, *ways: dict[str, Any]) -> OptionError:
    condition = f"{{layer_decay=}} cannot be combined with {what}"
    return OptionError("layer_decay", decay, condition, [*ways, {"layer_decay": None}])


def scale_steps(optimizer: Optimizer, factors: Sequence[float]) -> None:
    """From now on, update each parameter at the learning rate of the optimizer times its factor.

    Args:
        optimizer: with one group of parameters.
        factors: one per parameter.
    """
    places: dict[float, list[int]] = defaultdict(list)
    for place, factor in enumerate(factors):
        places[factor].append(place)
    group = optimizer.param_groups[0]
    assert len(optimizer.param_groups) == 1 and len(group["params"]) == len(factors)
    depth = 0  # the step of a class may call that of its base, and torch calls hooks for both

    def divide(optimizer: Optimizer, *_: Any) -> None:
        nonlocal group, depth
        depth += 1
        if depth > 1:
            return
        (group,) = optimizer.param_groups
        optimizer.param_groups = [
            {**group, "params": [group["params"][place] for place in members], "lr": group["lr"] * factor}
            for factor, members in places.items()
        ]

    def join(optimizer: Optimizer, *_: Any) -> None:
        """Keep what a step notes in its groups, such as the number of updates."""
        nonlocal depth
        depth -= 1
        if depth:
            return
        noted = optimizer.param_groups[0]
        group.update({name: value for name, value in noted.items() if name not in ("params", "lr")})
        optimizer.param_groups = [group]

    optimizer.register_step_pre_hook(divide)
    optimizer.register_step_post_hook(join)
