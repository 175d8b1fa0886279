"""Check fairseq's options against a fully sharded model, and adapt those with another meaning."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import open_dict

from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.core.parallel.fully_sharded import ShardingOptions
from torchscale_fairseq.hooks.options.model_options import model_options
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed

BACKEND = "distributed_training.ddp_backend"
FULLY_SHARDED = "fully_sharded"


def is_fully_sharded(cfg: Any) -> bool:
    """Whether a run's configuration requests sharding."""
    return bool(cfg.distributed_training.ddp_backend == FULLY_SHARDED)


def sharding_options(cfg: Any) -> ShardingOptions:
    """How a run shards its model.

    Args:
        cfg: fairseq's whole configuration.
    """
    training, common = cfg.distributed_training, cfg.common
    on_gpu = torch.cuda.is_available() and not common.cpu
    return ShardingOptions(
        device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"),
        shard_size=model_options(cfg.model).fsdp_shard_size,
        compute_dtype=torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else None,
        reduce_dtype=torch.float32 if training.fp32_reduce_scatter else None,
        reshard_after_forward=not training.no_reshard_after_forward,
        cpu_offload=training.cpu_offload,
    )


@contextmanager
def in_float32(cfg: Any) -> Iterator[None]:
    """Switch half precision and offloading off in the configuration within the with block: fairseq's Trainer would
    convert the slices, which are the float32 parameters that the optimizer updates."""
    places = [(cfg.common, "fp16"), (cfg.common, "bf16"), (cfg.distributed_training, "cpu_offload")]
    values = [node[name] for node, name in places]
    with open_dict(cfg):
        for node, name in places:
            node[name] = False
        try:
            yield
        finally:
            for (node, name), value in zip(places, values, strict=True):
                node[name] = value


def check_options(cfg: Any, task: Any) -> None:
    """Refuse options that contradict sharding.

    Raises:
        OptionError: naming both options and a way out.
    """
    with spelt_as_typed():
        for error in _contradictions(cfg, task):
            raise error


def check_unsharded(cfg: Any) -> None:
    """Refuse options of sharding where nothing is sharded.

    Raises:
        OptionError: naming the option and a way out.
    """
    defaults = {"checkpoint_format": (None, "merged"), "async_checkpoint": (False,), "fsdp_shard_size": (0,)}
    options = model_options(cfg.model)
    for option, without_effect in defaults.items():
        value = getattr(options, option)
        if value not in without_effect:
            condition = f"{{{option}=}} is for {{{BACKEND}}} {FULLY_SHARDED}"
            divides = option != "fsdp_shard_size" or cfg.distributed_training.distributed_world_size % value == 0
            ways: list[dict[str, Any]] = [*([{BACKEND: FULLY_SHARDED}] if divides else []), {option: None}]
            with spelt_as_typed():
                raise OptionError(option, value, condition, ways)


def _contradictions(cfg: Any, task: Any) -> Iterator[OptionError]:
    common, training = cfg.common, cfg.distributed_training
    precisions = [{"common.bf16": True}, {"common.fp16": True}]
    if common.amp:
        yield _contradiction(
            "common.amp", "scales losses per process", *({"common.amp": None, **p} for p in precisions)
        )
    for half, precision in zip(("bf16", "fp16"), precisions, strict=True):
        option = f"common.memory_efficient_{half}"
        if getattr(common, f"memory_efficient_{half}"):
            reason = "has no float32 parameters, which the slices are"
            yield _contradiction(option, reason, {option: None, **precision})
    if training.zero_sharding != "none":
        option = "distributed_training.zero_sharding"
        yield _contradiction(option, "shards what is sharded already", {option: None}, value=training.zero_sharding)
    if cfg.optimization.use_bmuf:
        option = "optimization.use_bmuf"
        yield _contradiction(option, "lets processes update whole models by themselves", {option: None})
    if training.use_sharded_state:
        option = "distributed_training.use_sharded_state"
        yield _contradiction(option, "is fairscale's format of checkpoints", {option: None})
    if cfg.common.quantization_config_path is not None:
        option = "common.quantization_config_path"
        yield _contradiction(option, "replaces whole parameters while training", {option: None})
    if getattr(getattr(cfg, "task", None), "eval_bleu", False):
        reason = "generates text, and processes with slices of a model must take the same number of steps"
        yield _contradiction("task.eval_bleu", reason, {"task.eval_bleu": None})
    options = model_options(cfg.model)
    if options.async_checkpoint and options.checkpoint_format == "merged":
        condition = "{async_checkpoint=} is for sharded checkpoints, and contradicts {checkpoint_format} merged"
        ways: list[dict[str, Any]] = [{"checkpoint_format": "sharded"}, {"async_checkpoint": None}]
        yield OptionError("async_checkpoint", True, condition, ways)
    if options.log_norms_interval:
        reason = "reads whole gradients"
        yield _contradiction("log_norms_interval", reason, {"log_norms_interval": None})
    if cfg.ema.store_ema and getattr(task, "uses_ema", False):
        reason = "computes with the average, which is sharded, in this task"
        yield _contradiction("ema.store_ema", reason, {"ema.store_ema": None})


def _contradiction(option: str, reason: str, *ways: dict[str, Any], value: Any = True) -> OptionError:
    condition = f"{{{option}=}} {reason}, and cannot be combined with {{{BACKEND}}} {FULLY_SHARDED}"
    return OptionError(option, value, condition, [*ways, {BACKEND: "pytorch_ddp"}])
