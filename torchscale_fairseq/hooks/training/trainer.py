"""The Trainer that fairseq's train command builds when this package is its --user-dir."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.logging import metrics

from torchscale_fairseq.checkpoints.reading import CheckpointError, Parts, describe_mismatch
from torchscale_fairseq.core.architectures.layer_decay import learning_rate_factors
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.parallel.expert_parameters import expert_names
from torchscale_fairseq.core.parallel.fully_sharded import CuttingCopies
from torchscale_fairseq.hooks import sequence_parallel as sequence
from torchscale_fairseq.hooks.contracts import AdaptsCheckpoints, BalancesExperts
from torchscale_fairseq.hooks.experts import checkpoints as expert_checkpoints
from torchscale_fairseq.hooks.experts.equal_batches import EqualBatches, compares_batches
from torchscale_fairseq.hooks.experts.options import prepare_options
from torchscale_fairseq.hooks.generation import evaluation
from torchscale_fairseq.hooks.monitoring.layer_norms import LayerNorms
from torchscale_fairseq.hooks.monitoring.speed import speed_meter
from torchscale_fairseq.hooks.options import module_switches
from torchscale_fairseq.hooks.options.model_options import model_options
from torchscale_fairseq.hooks.runs import finished, preemption, save_dir
from torchscale_fairseq.hooks.sharding.checkpoints import WRAPPERS
from torchscale_fairseq.hooks.sharding.options import in_float32
from torchscale_fairseq.hooks.sharding.training import sharded_training
from torchscale_fairseq.hooks.stock import precision
from torchscale_fairseq.hooks.training.adapters import check_adapters
from torchscale_fairseq.hooks.training.gradient_sums import sum_gradients
from torchscale_fairseq.hooks.training.layer_decay import check_layer_decay, scale_steps
from torchscale_fairseq.hooks.training.missing_batches import leave_out_stand_ins
from torchscale_fairseq.hooks.training.packed_sentences import check_packed_sentences
from torchscale_fairseq.hooks.training.saving_trainer import SavingTrainer
from torchscale_fairseq.hooks.training.step_graphs import StepGraphs, can_record
from torchscale_fairseq.hooks.training.whole_layers import keep_layers_whole

logger = logging.getLogger(__name__)


class Trainer(SavingTrainer):
    """fairseq's Trainer with its faults mended (docs/stock_repairs.md), expert and sequence parallelism
    (docs/distributed.md), throughput and norm logging, and graceful shutdown on SIGTERM and SIGUSR1
    (docs/launching.md)."""

    _wrapped_model: Any
    """The model in the wrapper that reduces its gradients, once it is built; else None."""

    def __init__(self, cfg: Any, task: Any, model: Any, criterion: Any, quantizer: Any = None):
        precision.check_flags(cfg.common)
        evaluation.refuse_shards(cfg.dataset)
        module_switches.refuse_product_quantization(cfg.common, model)
        self._split = expert_checkpoints.split_of(model)
        """How experts are held, if several processes hold them."""
        check_adapters(cfg, experts_are_split=self._split is not None)
        check_packed_sentences(cfg, model)
        check_layer_decay(cfg)
        has_experts = any(isinstance(module, Experts) for module in model.modules())
        if has_experts:
            prepare_options(cfg, several_processes=self._split is not None)
        if self._split is not None:
            model._ddp_params_and_buffers_to_ignore = expert_names(model)
        self._sharing = sequence.sharing_of(cfg, task, model)
        """Sequence parallelism of this run, or None."""
        self._sharded = sharded_training(cfg, task, model, criterion)
        """The sharding of the model, or None."""
        with in_float32(cfg) if self._sharded else nullcontext():
            super().__init__(cfg, task, model, criterion, quantizer)
        if self._sharded is not None:
            self._grad_norm_buf = None  # for comparing norms, which are sums over all processes here
        self._records = can_record(cfg, model, criterion, self.device)
        """Whether updates are recorded as CUDA graphs."""
        usual = task.train_step
        if self._records:
            task.train_step = graphs = StepGraphs(usual)
            usual = partial(graphs, recordable=False)
        if compares_batches(cfg, model, self.device):
            task.train_step = EqualBatches(usual, task.train_step)
        if self.data_parallel_world_size > 1:
            task.train_step = leave_out_stand_ins(task.train_step)
        keep_layers_whole(model)
        self._claim_save_dir()
        self.finished = False
        """Whether the run had reached its end when it was resumed; see ``finished.py``."""
        if not self.cuda and self.is_data_parallel_master:
            precision.warn_of_training_on_cpu(cfg.common)
        if has_experts and not isinstance(criterion, BalancesExperts) and self.is_data_parallel_master:
            logger.warning(
                "--criterion %s leaves out the experts' balance loss (--moe-gate-loss-wt); moe_cross_entropy, "
                "moe_linear_cross_entropy, moe_label_smoothed_cross_entropy and masked_lm_moe_cross_entropy have it",
                getattr(cfg.criterion, "_name", type(criterion).__name__),
            )
        half = cfg.common.fp16 or cfg.common.bf16 or cfg.common.amp
        options = model_options(cfg.model)
        self._speed = speed_meter(self._model, self.device, options.peak_tflops, half=half)
        self._work: list[Any] = []
        """Tokens and FLOPs of the update being made, until they are logged."""
        self._own_work: list[Any] = []
        """Those of this process."""
        self._norms = self._layer_norms(options.log_norms_interval)
        self._signals = preemption.Received() if preemption.asked() else None
        self._stop: signal.Signals | None = None

    @property
    def model(self) -> Any:
        """The model in the wrapper that sums its gradients, which is ours if updates are recorded."""
        if self._wrapped_model is None and self._records and self.use_distributed_wrapper:
            model, group = self._model.to(self.device), self.data_parallel_process_group
            self._wrapped_model = sum_gradients(self.cfg, model, group)
        return super().model

    def _build_optimizer(self) -> None:
        """Stock's, with a learning rate per layer under --layer-decay."""
        super()._build_optimizer()
        decay = model_options(self.cfg.model).layer_decay
        if decay != 1:
            of_criterion = [1.0 for p in self._criterion.parameters() if p.requires_grad]
            factors = learning_rate_factors(self._model, decay) + of_criterion
            scale_steps(self._optimizer.optimizer, factors)

    def _claim_save_dir(self) -> None:
        options = self.cfg.checkpoint
        save_dir.check_restore_file(options, self.checkpoint_suffix)
        if self.should_save_checkpoint_on_current_rank and not options.no_save:
            self._lock = save_dir.claim(Path(options.save_dir), self.checkpoint_suffix)

    def _layer_norms(self, interval: int) -> LayerNorms | None:
        if interval < 0:
            raise InputError(f"--log-norms-interval ({interval}) must be at least 0; 0 logs none.")
        if not interval:
            return None
        folder = self.cfg.common.tensorboard_logdir
        if not folder:
            raise InputError(f"--log-norms-interval ({interval}) writes to TensorBoard: give --tensorboard-logdir too.")
        return LayerNorms(self._model, interval, folder if self.is_data_parallel_master else None, self._split)

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Stock's. Where processes exchange more than gradients, one that runs out of memory does not try to go on
        without the others."""
        if self._speed is not None:
            self._work = self._speed.measure(samples, shared_by=1 if self._sharing is None else self._sharing.size)
        self._own_work = self._work
        output = super().train_step(samples, raise_oom or self._in_step)
        if output is not None and self._speed is not None and self._work:
            self.when_counted(partial(self._speed.log, *self._work))
        self._work = self._own_work = []
        if self._pending is not None and self._pending.done():
            self.finish_pending_save()
        if output is not None and self._norms is not None:
            self._norms.after_update(self.optimizer, self.get_num_updates())
        return output

    def _is_looked_at(self) -> bool:
        """Whether fairseq asks for the number of updates at once, or norms of this update are written."""
        measured = self._norms is not None and self.get_num_updates() % self._norms.interval == 0
        return measured or super()._is_looked_at()

    def clip_grad_norm(self, clip_norm: float) -> Any:
        """The norm; before it, gradients of an update to be logged are measured."""
        if self._norms is not None:
            self._norms.before_update(self.optimizer, self.get_num_updates() + 1)
        return super().clip_grad_norm(clip_norm)

    def valid_step(self, sample: Any, raise_oom: bool = False) -> Any:
        """Validate one step; the validation ends where the processes have agreed to stop."""
        output = super().valid_step(sample, raise_oom or self._in_step)
        self.stop_if_told()
        return output

    def _aggregate_logging_outputs(self, logging_outputs: Any, *more: Any, ignore: bool = False) -> Any:
        """Stock's. A sentence that several processes share counts once."""
        if self._sharing is not None:
            logging_outputs, more = self._sharing.count_once(logging_outputs, more)
        return super()._aggregate_logging_outputs(logging_outputs, *more, ignore=ignore)

    def own_numbers(self) -> list[float]:
        """How much this process computes in an update, and which signals it has received."""
        self._work = []
        return [*self._own_work, *([] if self._signals is None else self._signals.counts())]

    def take_sums(self, sums: Sequence[Any]) -> None:
        """The means over processes of how much they compute, and whether they agree to stop."""
        told = 0 if self._signals is None else len(preemption.EXIT_CODES)
        work = len(sums) - told
        self._work = [total / self.data_parallel_world_size for total in sums[:work]]
        if told:
            self._stop = preemption.agreed(sums[work:])

    def log_sums(self) -> None:
        """Log the speed of an update."""
        if self._speed is not None and self._work:
            self._speed.log(*self._work)
        self._work = []

    def stop_if_told(self) -> None:
        """Raise StopRequested if the processes, or the only one, received a signal to stop."""
        if self._signals is not None and self.data_parallel_world_size == 1:
            self._stop = preemption.agreed(self._signals.counts())
        if self._stop is not None:
            raise preemption.StopRequested(self._stop)

    @property
    def _in_step(self) -> bool:
        """Whether processes wait for each other within a forward pass."""
        return self._split is not None or self._sharing is not None or self._sharded is not None

    def get_train_iterator(self, epoch: int, *args: Any, **kwargs: Any) -> Any:
        """Batches for this process, or for the group of processes that shares their sequences. fairseq builds the
        batches once, in the first epoch that a process sees, and only reshuffles them afterwards. A run resumed in a
        later epoch would therefore build other batches, so epoch 1's batches are always built first and reused."""
        with self._batches_for_groups():
            if epoch > 1 and kwargs.get("load_dataset", True) and not kwargs.get("disable_iterator_cache", False):
                super().get_train_iterator(1, *args, **kwargs)
                kwargs["load_dataset"] = False
            return super().get_train_iterator(epoch, *args, **kwargs)

    def get_valid_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """Validation batches for this process, or for the group of processes that shares their sequences."""
        with self._batches_for_groups():
            return super().get_valid_iterator(*args, **kwargs)

    def _batches_for_groups(self) -> AbstractContextManager[None]:
        return nullcontext() if self._sharing is None else self._sharing.batches_for_groups(self.task)

    def _prepare_sample(self, sample: Any, is_dummy: bool = False) -> Any:
        """Move a batch to the device; with sequence parallelism, this process's slice of the group's batch."""
        if self._sharing is not None and isinstance(sample, dict) and sample:
            sample = self._sharing.slice(sample)
        return super()._prepare_sample(sample, is_dummy)

    @property
    def _own_experts(self) -> range | None:
        """None for all."""
        split = self._split
        return None if split is None else range(split.first, split.first + split.local)

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: Any = None,
        reset_meters: bool = False,
    ) -> Any:
        """Adapts the checkpoint to this run, and says which architectures meet where it does not fit the model. Stock
        loses the start of ``wall`` and, for ``--patience``, the validations without improvement; and it counts the
        hours of a pretrained model as those of its fine-tuning."""
        wall = metrics.get_meter("default", "wall")
        resets = (reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
        extra_state = self._load_or_explain(filename, *resets)
        metrics.get_meter("default", "wall").start_time = wall.start_time
        if reset_meters:
            self._previous_training_time = 0
        elif extra_state is not None:
            finished.restore_early_stop(extra_state)
        return extra_state

    def _load_or_explain(self, filename: str, *resets: Any) -> Any:
        try:
            with ExitStack() as stack:
                parts = Parts(self._own_experts, self._reader())
                stack.enter_context(_adapting_checkpoints(self._adapt, parts))
                if self._sharded is not None:
                    stack.enter_context(CuttingCopies())
                return super().load_checkpoint(filename, *resets)
        except CheckpointError:
            raise
        except Exception as error:
            if not str(error).startswith("Cannot load model parameters"):
                raise
            mismatch = describe_mismatch(filename, self.get_model(), self.cfg.model)
            if mismatch is None:
                raise
            raise CheckpointError(mismatch) from None

    def _adapt(self, state: dict[str, Any]) -> None:
        """Adapt a loaded checkpoint to this run: seed the EMA from the weights if the checkpoint has none (stock fails
        with ``KeyError: 'model'``); rescale the data position to the new number of processes or groups; drop optimizer
        states of experts held by other processes; let the task validate its own state."""
        extra, config = state["extra_state"], state["cfg"]
        if self.cfg.ema.store_ema:
            extra.setdefault("ema", state["model"])
        place = extra["train_iterator"]
        if place.get("iterations_in_epoch") and config is not None:
            shards = sequence.batches_at_once(config)
            place["iterations_in_epoch"] = place["iterations_in_epoch"] * shards // sequence.batches_at_once(self.cfg)
        if self._split is not None:
            expert_checkpoints.take_own(state, self._split, self._expert_indices())
        if self._sharded is not None:
            self._sharded_states.cut(state)
            _name_as_here(state, type(self.optimizer).__name__)
        if isinstance(self.task, AdaptsCheckpoints):
            fine_tuning = bool(self.cfg.checkpoint.finetune_from_model)
            keep_optimizer = not (fine_tuning or self.cfg.checkpoint.reset_optimizer)
            self.task.adapt_checkpoint(state, fine_tuning=fine_tuning, keep_optimizer=keep_optimizer)


def build_our_trainer(stock: type) -> type:
    """``fairseq.trainer.Trainer``, which fairseq-train builds."""
    return Trainer


def _name_as_here(state: dict[str, Any], name: str) -> None:
    """Undo ``saving_trainer._name_as_elsewhere``: the optimizer gets the name that it has in this run."""
    for last in state["optimizer_history"][-1:]:
        if last.get("optimizer_name") in WRAPPERS or name in WRAPPERS:
            last["optimizer_name"] = name


@contextmanager
def _adapting_checkpoints(adapt: Callable[[dict[str, Any]], None], parts: Parts) -> Iterator[None]:
    """Meanwhile, these parts of a checkpoint are read, and ``adapt`` sees them before anyone else."""
    read = checkpoint_utils.load_checkpoint_to_cpu

    def read_and_adapt(*args: Any, **kwargs: Any) -> Any:
        state = read(*args, parts=parts, **kwargs)
        adapt(state)
        return state

    checkpoint_utils.load_checkpoint_to_cpu = read_and_adapt
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = read
