"""The side of fairseq's Trainer that a sharded model needs: its optimizer, its gradients and its moving average."""

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from fairseq import optim, utils
from fairseq.models.ema.ema import EMA
from torch import Tensor, nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.parallel.fully_sharded import (
    LocalParameters,
    gradients_kept_whole,
    local_part,
    shard_model,
)
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed
from torchscale_fairseq.hooks.sharding import memory
from torchscale_fairseq.hooks.sharding.options import check_options, check_unsharded, is_fully_sharded, sharding_options


def sharded_training(cfg: Any, task: Any, model: nn.Module, criterion: nn.Module) -> "ShardedTraining | None":
    """Shard a model, and a criterion that has parameters, if a run requests it.

    Raises:
        OptionError: options contradict each other.
    """
    if not is_fully_sharded(cfg):
        check_unsharded(cfg)
        return None
    check_options(cfg, task)
    with spelt_as_typed():
        return ShardedTraining(cfg, model, criterion)


class ShardedTraining:
    """A model that is sharded, and whose slices an optimizer updates.

    Args:
        cfg: fairseq's whole configuration.
        model, criterion: changed in place.
    """

    def __init__(self, cfg: Any, model: nn.Module, criterion: nn.Module):
        self.options = sharding_options(cfg)
        cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True  # each reads its slices
        if not dist.is_initialized():  # fairseq does without where there is one process
            backend = "gloo" if self.options.device.type == "cpu" else "nccl"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self._check_fit(cfg, model)
        self._modules = [module for module in (model, criterion) if utils.has_parameters(module)]
        for module in self._modules:
            shard_model(module, self.options)
        criterion.to(self.options.device)  # buffers of one without parameters
        self.parameters = LocalParameters(chain(model.parameters(), criterion.parameters()))
        # fairseq's optimizer calls this before it looks at gradients; nn.Module's own __setattr__ would look for it
        object.__setattr__(model, "all_reduce_grads", self.parameters.take_gradients)
        if self.options.keeps_gradients_whole:  # fairseq enters this for all batches of an update but the last
            object.__setattr__(model, "no_sync", partial(gradients_kept_whole, self._modules))

    def _check_fit(self, cfg: Any, model: nn.Module) -> None:
        options = self.options
        if not options.cpu_offload:
            compute_bytes = 4 if options.compute_dtype is None else options.compute_dtype.itemsize
            holders = options.shard_size or dist.get_world_size()
            room = memory.device_bytes(options.device)
            memory.check_fit(model, holders, compute_bytes, room, arch=str(getattr(cfg.model, "_name", "")))

    def build_optimizer(self, cfg: Any) -> Any:
        """fairseq's optimizer of the slices, with loss scaling under --fp16.

        Raises:
            InputError: the optimizer looks at more than an entry of a parameter at a time.
        """
        if cfg.common.fp16:
            build = optim.MemoryEfficientFP16Optimizer.build_optimizer
            optimizer = build(cfg, self.parameters.local, allow_unsupported=True)
        else:
            optimizer = optim.build_optimizer(cfg.optimizer, self.parameters.local)
        if not optimizer.supports_flat_params:
            raise InputError(
                f"--optimizer {cfg.optimizer._name} looks at whole parameters, and cannot be combined with "
                "--ddp-backend fully_sharded, where a process holds a slice of each; give --optimizer adam, or "
                "--ddp-backend pytorch_ddp."
            )
        return optimizer


class ShardedEMA(EMA):
    """fairseq's moving average, of slices.

    Args:
        model: sharded.
        config: fairseq's options of the average.
    """

    def __init__(self, model: nn.Module, config: Any):
        self.decay = config.ema_decay
        self.config = config
        self.skip_keys: set[str] = set()
        self.fp32_params: dict[str, Tensor] = {}
        self.update_freq_counter = 0
        self.model = _Slices(model.state_dict())
        if config.ema_seed_model is not None:
            raise InputError(
                "--ema-seed-model cannot be combined with --ddp-backend fully_sharded; drop --ema-seed-model."
            )
        if config.ema_fp32:
            self.build_fp32_params()

    @torch.no_grad()
    def _step_internal(self, new_model: nn.Module, updates: int | None = None) -> None:
        averages = self.fp32_params if self.config.ema_fp32 else self.model.state_dict()
        for name, value in new_model.state_dict().items():
            if torch.is_tensor(value) and "version" not in name:
                part = local_part(value)
                local_part(averages[name]).mul_(self.decay).add_(part, alpha=1 - self.decay)
        self.restore(averages, build_fp32_params=False)


class _Slices:
    """The interface of a model that the average uses."""

    def __init__(self, state: Mapping[str, Any]):
        copied: dict[Any, Tensor] = {}
        self._state: dict[str, Tensor] = {}
        for name, value in state.items():
            if torch.is_tensor(value):  # parameters that are one stay one, as in fairseq's copy of a model
                key = (local_part(value).data_ptr(), value.shape)
                self._state[name] = copied.setdefault(key, value.detach().clone())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._state)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        for name, value in state.items():
            if name in self._state:
                self._state[name].copy_(value)
