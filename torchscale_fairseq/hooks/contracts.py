"""Members that this package looks for in models, tasks, criterions, optimizers and Trainers. Those of fairseq and of
other packages lack them, and are treated as stock fairseq treats them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.distributed import ProcessGroup


@runtime_checkable
class NamesFittingTasks(Protocol):
    """A model class that is refused with other tasks and criterions (``options.fitting``)."""

    fits: Mapping[str, Sequence[str]]
    """Criterions by task. A class may also have ``instead``, a sentence of advice."""


@runtime_checkable
class HasPreset(Protocol):
    """A model class that an architecture of this package names."""

    preset: Mapping[str, Any]
    """Options that differ from the config's defaults."""


def sides_of(model: Any) -> dict[str, nn.Module]:
    """The encoder and the decoder of a model, as far as it has them."""
    sides = {side: getattr(model, side, None) for side in ("encoder", "decoder")}
    return {side: module for side, module in sides.items() if isinstance(module, nn.Module)}


@runtime_checkable
class AdaptsCheckpoints(Protocol):
    """A task that looks at a checkpoint before a run resumes or fine-tunes from it."""

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool, keep_optimizer: bool) -> None:
        """Check a checkpoint, or change it.

        Args:
            state: of the checkpoint; may be changed in place.
            fine_tuning: the run begins from the weights alone (--finetune-from-model).
            keep_optimizer: the state of the optimizer is used as well.

        Raises:
            InputError: the run cannot begin from it.
        """


@runtime_checkable
class CutsSequences(Protocol):
    """A task that knows how the processes of a group share its batches (--seq-parallel)."""

    def sequence_cut(self, group: ProcessGroup) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """From a batch of the group to this process's part of it."""


@runtime_checkable
class ReadsSlices(Protocol):
    """A task whose sequences have one length, and which reads one process's slice of each (--seq-parallel)."""

    @property
    def sequence_length(self) -> int:
        """Length of a whole sequence, in the positions that the model counts."""

    def share_sequences(self, rank: int, size: int) -> None:
        """Read one slice of each sequence from the next batch on.

        Args:
            rank: of this process among those that share a sequence.
            size: their number.
        """


@runtime_checkable
class PredictsTargets(Protocol):
    """A task of images or slides."""

    predicts: str
    """The kind of its targets: classes, labels (any number of them per example) or times."""


@runtime_checkable
class PredictsPatches(Protocol):
    """A task of masked image modelling, which hides patches of images."""

    @property
    def patch_vocab_size(self) -> int:
        """Ids that are predicted for a patch; 0 for pixels."""


@runtime_checkable
class LearnsByObjective(Protocol):
    """A task that trains models of several kinds."""

    objective: str | None
    """masked or causal; None before a model is built."""


@runtime_checkable
class ReadsMaskedPositions(Protocol):
    """A masked language model whose ``forward`` takes masked_positions, (tokens,) places in the batch, and returns
    features (tokens, width) at them."""

    @property
    def projection(self) -> tuple[Tensor, Tensor] | None:
        """Weight (vocabulary, width) and bias (vocabulary,), which make logits of these features; None if
        masked_positions cannot be used now."""


@runtime_checkable
class MeasuresAfterValidation(Protocol):
    """A task that logs figures of a whole validation at its end; fairseq calls it then."""

    def post_validate(self, model: Any, stats: Any, aggregator: Any) -> None:
        """Log them."""


@runtime_checkable
class SkipsUpdates(Protocol):
    """An optimizer of torch that can leave the weights as they are where the device finds infinite gradients."""

    @property
    def can_skip(self) -> bool:
        """Whether it heeds ``found_inf``."""


@runtime_checkable
class UpdatesHalves(Protocol):
    """An optimizer of torch whose parameters may be copies of others in half precision, which it then updates too."""

    halves: dict[Tensor, list[Tensor]]
    """By parameter those others, if the next step reads their gradients and writes them; else empty."""

    def take_halves(self, halves: dict[Tensor, list[Tensor]]) -> bool:
        """Whether the next step will do so for these; if not, the parameters need gradients."""


@runtime_checkable
class ComputesAlike(Protocol):
    """A criterion that says whether it computes alike for all batches of a shape."""

    @property
    def computes_alike(self) -> bool:
        """Whether it neither waits for the device nor draws numbers on the host, so that it can be recorded."""


@runtime_checkable
class BalancesExperts(Protocol):
    """A criterion that adds the balance loss of mixtures of experts."""

    mixture: Any
    """Its options (``criterions._mixture.MixtureOptions``)."""


@runtime_checkable
class SavesTogether(Protocol):
    """A Trainer whose processes write checkpoints together."""

    @property
    def saves_asynchronously(self) -> bool:
        """Whether training goes on while a checkpoint is written."""

    def begin_saving(self, stock: Callable[..., Any], cfg: Any, epoch_itr: Any, val_loss: Any) -> None:
        """Takes the place of fairseq's ``save_checkpoint`` if the Trainer saves asynchronously.

        Args:
            stock: fairseq's function.
            cfg: its first argument, the options of checkpoints.
            epoch_itr: its third.
            val_loss: its last.
        """

    def saving_together(self) -> AbstractContextManager[None]:
        """Around fairseq's ``save_checkpoint``, in every process: within it, the first process has the whole state."""


def finds_unused_parameters(model: Any) -> bool:
    """Whether torch's DistributedDataParallel wraps a model and searches for parameters that the forward pass does not
    use (``--find-unused-parameters``); a use after the forward pass escapes it."""
    return bool(getattr(model, "find_unused_parameters", False))
