"""fairseq's Trainer for a model that is sharded (``--ddp-backend fully_sharded``)."""

from typing import Any

from fairseq.optim import lr_scheduler

from torchscale_fairseq.core.parallel.groups import ExpertSplit
from torchscale_fairseq.hooks.sharding.checkpoints import ShardedStates
from torchscale_fairseq.hooks.sharding.training import ShardedEMA, ShardedTraining
from torchscale_fairseq.hooks.training.summing_trainer import SummingTrainer


class ShardedTrainer(SummingTrainer):
    """The optimizer and the moving average of a sharded model; any other model goes stock's way."""

    _sharded: ShardedTraining | None = None
    """The sharding of the model, or None."""
    _split: ExpertSplit | None = None
    """How experts are held, if several processes hold them."""

    @property
    def is_fsdp(self) -> bool:
        """Whether fairscale shards the model: never. Stock code for it stays out of the way."""
        return False

    @property
    def use_distributed_wrapper(self) -> bool:
        """Whether stock leaves it to others to move the model to the device."""
        return self._sharded is not None or bool(super().use_distributed_wrapper)

    @property
    def model(self) -> Any:
        """The model in the wrapper that reduces its gradients; a sharded one has none."""
        return super().model if self._sharded is None else self._model

    @property
    def criterion(self) -> Any:
        """The criterion in the wrapper that reduces its gradients; a sharded one has none."""
        return super().criterion if self._sharded is None else self._criterion

    def _build_optimizer(self) -> None:
        if self._sharded is None:
            super()._build_optimizer()
            return
        self._optimizer = self._sharded.build_optimizer(self.cfg)
        self._lr_scheduler = lr_scheduler.build_lr_scheduler(self.cfg.lr_scheduler, self._optimizer)
        self._lr_scheduler.step_update(0)

    def _build_ema(self) -> None:
        if self._sharded is None:
            super()._build_ema()
        elif self.cfg.ema.store_ema:
            self._ema = ShardedEMA(self._model, self.cfg.ema)

    @property
    def _sharded_states(self) -> ShardedStates:
        assert self._sharded is not None
        return ShardedStates(self._sharded.parameters, self._split)

    def _reader(self) -> Any:
        """The reader of slices of a checkpoint's tensors if the model is sharded, or None."""
        if self._sharded is None:
            return None
        return self._sharded_states.reader(self._model, self._criterion, self._averages)

    def _averages(self) -> dict[str, Any]:
        """The moving averages, which begin when somebody looks at them first."""
        if not self.cfg.ema.store_ema:
            return {}
        return {"ema": self.ema.get_model().state_dict(), "ema_fp32_params": self.ema.fp32_params}
