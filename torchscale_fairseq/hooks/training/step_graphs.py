"""Forward and backward of an update as one CUDA graph, for batches whose shape recurs.

Python starts about a thousand kernels per update. A GPU finishes those of a small model faster than Python can start
them. A CUDA graph records the kernels once and starts all of them in one call. A recording holds for one shape, so
language models, causal or masked, that read rows of equal length profit, and so do ViTs. Other batches run as they
would without this module. Among them are those with padding, of which the model asks the device where it lies, and
those of packed documents, whose number changes. Several processes record what each computes alone, and sum their
gradients next to the replays (``gradient_sums.py``). If they distribute experts, a recording also holds the exchange of
tokens, which takes batches of one size in all processes (``hooks/experts/equal_batches.py``).
"""

import logging
import weakref
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any

import torch
from fairseq import utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.criterions.masked_lm import MaskedLmLoss
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.encoder import Encoder
from torchscale_fairseq.core.architectures.vit import ViTClassifier
from torchscale_fairseq.core.layers.dilated_attention import DilatedAttention
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.hooked import is_hooked
from torchscale_fairseq.hooks.contracts import ComputesAlike, sides_of
from torchscale_fairseq.hooks.experts.equal_batches import reads_counts
from torchscale_fairseq.hooks.training.documents import has_documents
from torchscale_fairseq.hooks.training.gradient_sums import GradientSums, can_sum
from torchscale_fairseq.hooks.training.masked_tokens import Count, reads_positions
from torchscale_fairseq.hooks.training.padding import has_no_padding, is_free_of_padding, note_no_padding

logger = logging.getLogger(__name__)

SEEN = 3
"""Batches of a shape that run as usual before one is recorded. Kernels are compiled and tuned meanwhile."""
MOST = 4
"""Recordings at a time. Their activations lie in the same memory, as one is replayed after the other; each keeps its
results, and its gradients unless it adds to another's."""
RECENT = 64
"""Shapes that are counted at a time. A shape that does not recur among RECENT others is forgotten, and a recording that
no batch among the last RECENT had a use for makes room for another."""
CRITERIONS = (CrossEntropyCriterion, LabelSmoothedCrossEntropyCriterion)
"""Criterions of causal models, with their subclasses here, that never wait for the device."""


def can_record(cfg: Any, model: nn.Module, criterion: nn.Module, device: torch.device) -> bool:
    """Whether batches of this training can be recorded.

    Args:
        cfg: fairseq's whole config.
        model, criterion: as the Trainer receives them.
        device: on which they run.
    """
    return (
        device.type == "cuda"
        and bool(getattr(cfg.model, "compile", False))
        and (cfg.distributed_training.distributed_world_size == 1 or can_sum(cfg))
        and cfg.distributed_training.ddp_backend != "fully_sharded"
        and not cfg.common.amp
        and not cfg.ema.store_ema
        and _fit(model, criterion)
        and not utils.has_parameters(criterion)  # a replay would leave them without gradients
        and not any(_waits(module, cfg, device) for module in model.modules())
    )


def _fit(model: nn.Module, criterion: nn.Module) -> bool:
    """Whether a criterion never waits for the device, and the model is one whose batches have few shapes."""
    if isinstance(model, ViTClassifier):
        return isinstance(criterion, ComputesAlike) and criterion.computes_alike
    sides = sides_of(model)
    if reads_positions(model, criterion):  # a subclass might compute with the number of masked tokens, which differs
        return isinstance(sides.get("encoder"), Encoder) and type(criterion) is MaskedLmLoss
    return (
        isinstance(criterion, CRITERIONS)
        and not getattr(criterion, "report_accuracy", False)
        and isinstance(sides.get("decoder"), Decoder)
        and "encoder" not in sides
    )


def _waits(module: nn.Module, cfg: Any, device: torch.device) -> bool:
    """Whether a module waits for the device in training, even if all processes have batches of one size."""
    if isinstance(module, Experts):
        return reads_counts(module, cfg, device)
    return isinstance(module, DilatedAttention)


@dataclass(frozen=True)
class Recording:
    """Forward and backward of batches of one shape."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Any]
    """Leaves of the batch. Tensors are read by the graph wherever they are."""
    outputs: Any
    """Loss, sample size and logging outputs. The graph writes the tensors in it; a Count is the batch's."""
    gradients: list[Tensor | None]
    """Per parameter, also written by the graph."""
    marks: list[Any]
    """For sums of the gradients over processes."""

    def replay(self, inputs: list[Any], params: list[nn.Parameter]) -> Any:
        """The outputs for another batch of the shape; the parameters have its gradients."""
        counts = [given for given in inputs if isinstance(given, Count)]  # one at most
        for static, given in zip(self.inputs, inputs, strict=True):
            if isinstance(static, Tensor):
                static.copy_(given, non_blocking=True)
        self.graph.replay()
        for p, gradient in zip(params, self.gradients, strict=True):
            p.grad = gradient
        return pytree.tree_map(
            lambda x: x.clone() if isinstance(x, Tensor) else counts[0] if isinstance(x, Count) else x, self.outputs
        )


class StepGraphs:
    """``task.train_step`` that records and replays batches whose shape recurs.

    Args:
        train_step: the task's.
    """

    def __init__(self, train_step: Callable[..., Any]):
        self._train_step = train_step
        self._recordings: dict[Hashable, Recording] = {}
        self._seen: dict[Hashable, int] = {}
        self._batches = 0
        self._used: dict[Hashable, int] = {}
        self._params: list[nn.Parameter] = []
        self._stopped = False
        # at the exit too: NCCL waits in the end until no graph holds its operations (pytorch/pytorch#115388)
        weakref.finalize(self, self._recordings.clear)

    @property
    def recordings(self) -> int:
        """Shapes that are recorded."""
        return len(self._recordings)

    def __call__(
        self,
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        *,
        recordable: bool = True,
    ) -> Any:
        """Stock's arguments and results.

        Args:
            recordable: replay or record the batch if its shape recurs. If not, only its gradients are summed as those
                of others are.
        """

        def train_step(batch: Any) -> Any:
            return self._train_step(batch, model, criterion, optimizer, update_num, ignore_grad)

        sums = _sums_of(model)
        marks: list[Any] = []
        try:
            recording = None
            if recordable and not ignore_grad:
                recording = self._recording_of(sample, model, optimizer, train_step, sums)
            if recording is None:
                outputs = train_step(sample)
            else:
                marks = recording.marks
                outputs = recording.replay(pytree.tree_leaves(sample), self._params)
                optimizer._needs_sync = True  # set by FP16Optimizer.backward, which a replay does not call
        except RuntimeError as error:
            # stock survives a lack of memory, while other processes sum the gradients of this batch
            if sums is not None and _lacks_memory(error):
                clear_frames(error.__traceback__)  # which hold what the batch has computed
                sums.sum_zeros()
            raise
        if sums is not None:
            sums.sum_rest(marks)
        return outputs

    def _recording_of(
        self, sample: Any, model: Any, optimizer: Any, train_step: Callable[[Any], Any], sums: GradientSums | None
    ) -> Recording | None:
        """The recording of batches like this one, made now if it is time; None if the batch runs as usual."""
        bare = model if sums is None else sums.module
        watched = is_hooked(bare)  # by NanDetector, which a replay would not call
        if self._stopped or watched or not is_free_of_padding(sample) or has_documents(sample):
            return None
        self._params = self._params or list(model.parameters())
        key = self._key(sample, optimizer)
        self._batches += 1
        if key not in self._recordings:
            if not self._has_room() or not self._recurs(key) or any(map(is_hooked, bare.modules())):
                return None
            recording = self._record(sample, train_step, sums)
            if recording is None:
                self._stop()
                return None
            del self._seen[key]
            self._recordings[key] = recording
        self._used[key] = self._batches
        return self._recordings[key]

    def _has_room(self) -> bool:
        """Whether one more can be recorded, after dropping one that is no longer used: after a few changes of the loss
        scale all recordings are for scales of the past."""
        if len(self._recordings) < MOST:
            return True
        oldest = min(self._used, key=self._used.__getitem__)
        unused = self._batches - self._used[oldest] > RECENT
        if unused:
            del self._recordings[oldest], self._used[oldest]
        return unused

    def _recurs(self, key: Hashable) -> bool:
        """Count a batch of this shape. True once SEEN others came before it, with few other shapes in between."""
        self._seen[key] = self._seen.pop(key, 0) + 1  # the dictionary is in the order of the last batches
        if len(self._seen) > RECENT:
            del self._seen[next(iter(self._seen))]
        return self._seen[key] > SEEN

    def _key(self, sample: Any, optimizer: Any) -> Hashable:
        """Everything that is fixed in a recording: shapes and numbers of the batch, where gradients are accumulated,
        and the factor on the loss."""
        scaler = getattr(optimizer, "scaler", None)
        learnt = tuple(p.grad is not None for p in self._params)  # not those that are frozen, or unused so far
        gradient = self._params[learnt.index(True)].grad if any(learnt) else None
        scale = None if scaler is None else float(scaler.loss_scale)
        place = None if gradient is None else (gradient.data_ptr(), learnt)
        return _description(sample), place, scale

    def _record(self, sample: Any, train_step: Callable[[Any], Any], sums: GradientSums | None) -> Recording | None:
        """A recording of a batch, or None if memory does not suffice."""
        inputs, structure = pytree.tree_flatten(sample)
        static, before = [_static(leaf) for leaf in inputs], [p.grad for p in self._params]
        graph = torch.cuda.CUDAGraph()
        pool = next((recording.graph.pool() for recording in self._recordings.values()), None)
        marking: AbstractContextManager[list[Any]] = nullcontext([]) if sums is None else sums.recording()
        try:
            # loaders pin memory meanwhile
            with marking as marks, torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = pytree.tree_map(_detached, train_step(pytree.tree_unflatten(static, structure)))
        except RuntimeError as error:
            if _lacks_memory(error):
                for p, gradient in zip(self._params, before, strict=True):
                    p.grad = gradient  # a capture computes nothing, so that new gradients hold anything
                return None
            raise RuntimeError(
                "an update cannot be recorded as a CUDA graph; drop --compile to train without"
            ) from error
        return Recording(graph, static, outputs, [p.grad for p in self._params], marks)

    def _stop(self) -> None:
        logger.warning("CUDA graphs do not fit into the device's memory next to the model; training goes on without.")
        self._recordings.clear()
        self._used.clear()
        self._seen.clear()
        self._stopped = True
        torch.cuda.empty_cache()


def _sums_of(model: Any) -> GradientSums | None:
    """The wrapper of a model that sums its gradients over processes; None in one process."""
    wrapper = getattr(model, "module", None)
    return wrapper if isinstance(wrapper, GradientSums) else None


def _lacks_memory(error: RuntimeError) -> bool:
    """Whether an error is one of torch's memory, or of CUDA's, which also makes room for graphs."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _description(part: Any) -> Hashable:
    """Everything about a batch, or part of one, that a recording of it fixes."""
    if isinstance(part, Tensor):
        return part.shape, part.dtype, part.device
    if isinstance(part, dict):
        return tuple((name, _description(value)) for name, value in part.items())
    if isinstance(part, list | tuple):
        return type(part), tuple(map(_description, part))
    return Count if isinstance(part, Count) else part


def _static(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    copy = leaf.clone()
    return note_no_padding(copy) if has_no_padding(leaf) else copy


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
