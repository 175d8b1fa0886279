"""Models whose experts several processes hold: they are built and saved by all processes together."""

from collections.abc import Callable
from typing import Any

from torchscale_fairseq.core.parallel.groups import splitting_experts
from torchscale_fairseq.hooks.contracts import SavesTogether
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed


def split_while_training(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.models.build_model``: distribute the experts of a model that several processes train. A model built
    from a checkpoint for evaluation keeps all experts in each process, since evaluating processes do not keep step."""

    def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
        if from_checkpoint:
            return stock(cfg, task, from_checkpoint)
        with splitting_experts(), spelt_as_typed():
            return stock(cfg, task, from_checkpoint)

    return build_model


def save_together(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.checkpoint_utils.save_checkpoint`` with what our Trainer does before and after it."""

    def save_checkpoint(cfg: Any, trainer: Any, *arguments: Any) -> Any:
        if not isinstance(trainer, SavesTogether) or cfg.no_save:
            return stock(cfg, trainer, *arguments)
        if trainer.saves_asynchronously:
            return trainer.begin_saving(stock, cfg, *arguments)
        with trainer.saving_together():
            return stock(cfg, trainer, *arguments)

    return save_checkpoint
