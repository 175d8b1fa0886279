"""--seq-parallel: neighbouring processes get the same batch, and take their own slice of its sequences."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fairseq import utils
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from torchscale_fairseq.core.config.dilated import EXAMPLE
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.dilated_attention import DilatedAttention
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.core.parallel.sequence import SequenceSlice, sequence_group
from torchscale_fairseq.hooks.contracts import CutsSequences, ReadsSlices
from torchscale_fairseq.hooks.options.model_options import ModelOptions, model_options
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed

SLICE = "sequence_slice"
"""The argument by which a model learns what it is given."""


def batches_at_once(cfg: Any) -> int:
    """How many batches the processes of a run's configuration compute at once."""
    processes: int = cfg["distributed_training"]["distributed_world_size"]
    return processes // _processes_per_batch(cfg["model"], processes)


def _processes_per_batch(model: Any, processes: int) -> int:
    options = model_options(model)
    if not options.seq_parallel or processes == 1:
        return 1
    return options.seq_parallel_size or processes


def sharing_of(cfg: Any, task: Any, model: nn.Module) -> "SequenceSharing | None":
    """The sequence parallelism of a run; None without it.

    Raises:
        InputError: the model cannot read slices, or options contradict each other.
    """
    check_options(cfg, model)
    size = _processes_per_batch(cfg.model, cfg.distributed_training.distributed_world_size)
    if size == 1:
        return None
    with spelt_as_typed():
        group = sequence_group(size)
    if isinstance(task, CutsSequences):
        return SequenceSharing(group, task.sequence_cut(group), sentence_avg=True)
    if isinstance(task, ReadsSlices):
        task.share_sequences(dist.get_rank(group), size)
        return SequenceSharing(group, SlicesAsRead(group, task.sequence_length), sentence_avg=True)
    cut = SlicesOfTokens(group, task.source_dictionary.pad())
    return SequenceSharing(group, cut, sentence_avg=cfg.optimization.sentence_avg)


class SequenceSharing:
    """One process's part in the batches of its group.

    Args:
        group: the processes.
        cut: makes of a batch this process's part.
        sentence_avg: whether the sample size counts sentences, or images.
    """

    def __init__(self, group: ProcessGroup, cut: Callable[[dict[str, Any]], dict[str, Any]], *, sentence_avg: bool):
        self.size, self._cut, self._sentence_avg = dist.get_world_size(group), cut, sentence_avg

    @contextmanager
    def batches_for_groups(self, task: Any) -> Iterator[None]:
        """Make the task's iterators return the batches of this process's group, not its own, within the with block."""
        of_process = task.get_batch_iterator

        def of_group(*args: Any, num_shards: int, shard_id: int, **kwargs: Any) -> Any:
            shards = max(1, num_shards // self.size)
            return of_process(*args, num_shards=shards, shard_id=shard_id // self.size, **kwargs)

        task.get_batch_iterator = of_group
        try:
            yield
        finally:
            del task.get_batch_iterator

    def slice(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Cut a batch to this process's slice, and add a ``SequenceSlice`` for the model. A batch that is a slice
        already is returned unchanged.

        Raises:
            InputError: rows do not begin with a token, or have padding inside.
        """
        return sample if SLICE in sample["net_input"] else self._cut(sample)

    def count_once(self, logged: list[dict[str, Any]], sums: tuple[Any, ...]) -> tuple[list[dict[str, Any]], Any]:
        """Divide a process's counts of sentences so that the sums over all processes count each sentence once. Tokens
        need no division.

        Args:
            logged: by the criterion, per batch.
            sums: the sample size, and others that have nothing to do with sentences.
        """
        counts = ["nsentences"]
        if self._sentence_avg:  # the sample size is in sentences
            counts.append("sample_size")
            sums = (sums[0] / self.size, *sums[1:])
        return [{k: v / self.size if k in counts else v for k, v in log.items()} for log in logged], sums


class SlicesAsRead:
    """For tasks that read this process's slices alone.

    Args:
        group: the processes.
        length: of whole sequences.
    """

    def __init__(self, group: ProcessGroup, length: int):
        self._group, self._length = group, length

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The batch with its ``SequenceSlice``."""
        size = dist.get_world_size(self._group)
        uneven = self._length % size > 0
        lengths = torch.full((sample["nsentences"],), self._length) if uneven else None
        sequence_slice = SequenceSlice(self._group, -(-self._length // size), lengths)
        return {**sample, "net_input": {**sample["net_input"], SLICE: sequence_slice}}


class SlicesOfTokens:
    """For tasks that read whole texts.

    Args:
        group: the processes.
        padding: index of the padding token.
    """

    def __init__(self, group: ProcessGroup, padding: int):
        self._group, self._padding = group, padding

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Replace each tensor (batch, seq) of a batch by its slice, padded at the end, and ``ntokens`` by that of the
        slice; add a ``SequenceSlice``.

        Raises:
            InputError: rows do not begin with a token, or have padding inside.
        """
        tokens: Tensor = sample["net_input"]["src_tokens"]
        real = tokens.ne(self._padding)
        lengths = real.sum(1)
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise InputError(
                "--seq-parallel needs padding at the end of a row, but a row of this batch has some before a token "
                "(left_pad, say)."
            )
        size = dist.get_world_size(self._group)
        length = -(-tokens.size(1) // size)
        padded = length * size > tokens.size(1) or not bool(real.all())
        sequence_slice = SequenceSlice(self._group, length, lengths if padded else None)

        def own(x: Tensor) -> Tensor:
            if x.shape != tokens.shape:
                return x
            fill = 0 if x.is_floating_point() else self._padding
            return F.pad(x, (0, sequence_slice.total - x.size(1)), value=fill)[
                :, sequence_slice.start : sequence_slice.start + length
            ].contiguous()

        result: dict[str, Any] = utils.apply_to_sample(own, sample)
        result["net_input"][SLICE] = sequence_slice
        result["ntokens"] = int((lengths - sequence_slice.start).clamp(0, length).sum())
        return result


def check_options(cfg: Any, model: nn.Module) -> None:
    """Refuse what sequences that are distributed over processes do not go with.

    Raises:
        OptionError: the model cannot read slices, or options contradict each other.
    """
    with spelt_as_typed():
        options = model_options(cfg.model)
        _check_size(options)
        if options.seq_parallel:
            for error in _contradictions(cfg, model):
                raise error


def _check_size(options: ModelOptions) -> None:
    size = options.seq_parallel_size
    if size and not options.seq_parallel:
        ways = ({"seq_parallel": True}, {"seq_parallel_size": None})
        raise OptionError("seq_parallel_size", size, "{seq_parallel_size()} has no use without {seq_parallel}", ways)
    if size < 0:
        condition = "{seq_parallel_size()} must be at least 1, or 0 for all"
        raise OptionError("seq_parallel_size", size, condition, [{"seq_parallel_size": 0}])


def _contradictions(cfg: Any, model: nn.Module) -> Iterator[OptionError]:
    options, backend, without = cfg.model, cfg.distributed_training.ddp_backend, _without(cfg.model)
    modules = list(model.modules())
    if not any(isinstance(module, DilatedAttention) for module in modules):
        yield _of_dense_model(options, without)
    if any(isinstance(module, Experts) for module in modules):
        yield _contradiction("experts, whose capacity is counted per batch", without)
    if options.torchscale_compatible:
        reason = "{torchscale_compatible}, where the mixing of branches has no gradient"
        yield _contradiction(reason, {"torchscale_compatible": None}, without)
    if cfg.optimization.use_bmuf:
        reason = "{optimization.use_bmuf}, which lets processes update by themselves"
        yield _contradiction(reason, {"optimization.use_bmuf": None}, without)
    if backend not in ("c10d", "pytorch_ddp", "legacy_ddp", "no_c10d", "fully_sharded"):
        ways = ({"distributed_training.ddp_backend": name} for name in ("legacy_ddp", "pytorch_ddp"))
        yield _contradiction(f"{{distributed_training.ddp_backend}} {backend}", *ways)


def _without(options: Any) -> dict[str, Any]:
    """The remedy that leaves the sequences whole."""
    return {"seq_parallel": None, **({"seq_parallel_size": None} if options.seq_parallel_size else {})}


def _of_dense_model(options: Any, without: dict[str, Any]) -> OptionError:
    """The error of a model without dilated attention, which some architectures can be given."""
    known = options if isinstance(options, Mapping) else vars(options)
    if "segment_length" not in known:
        reason = ", which cannot have dilated attention (longnet, longvit and slide_encoder architectures have it)"
        return _contradiction(f"{{arch}} {options._name}{reason}", without)
    longnet = [{"arch": "longnet"}] if "decoder_layers" in known else []
    return _contradiction(f"{{arch}} {options._name}, whose attention is dense", *longnet, dict(EXAMPLE))


def _contradiction(what: str, *ways: dict[str, Any]) -> OptionError:
    return OptionError("seq_parallel", True, f"{{seq_parallel}} cannot be combined with {what}", ways)
