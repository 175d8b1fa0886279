"""--lora-rank: models are built with adapters, which alone are trained and saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from torchscale_fairseq.checkpoints.adapters import leave_out_base
from torchscale_fairseq.core.layers.lora import LoRA, add_adapters
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.model_options import ModelOptions, model_options
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed

HEADS = ("head", "classification_heads")
"""Attributes of models that are trained together with adapters: a task's own outputs, which no base has."""


def lora_of(options: ModelOptions) -> LoRA | None:
    """The adapters that options describe; None for none.

    Raises:
        OptionError: a value is out of its range.
    """
    if options.lora_rank == 0:
        return None
    targets = tuple(name.strip() for name in options.lora_targets.split(","))
    with spelt_as_typed():
        return LoRA(options.lora_rank, options.lora_alpha, options.lora_dropout, targets)


def build_with_adapters(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.models.build_model``: give a model of this package the adapters of --lora-rank."""

    def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
        model = stock(cfg, task, from_checkpoint)
        lora = lora_of(model_options(cfg))
        if lora is not None:
            with spelt_as_typed():
                add_adapters(model, lora)
            for name in HEADS:
                if isinstance(getattr(model, name, None), nn.Module):
                    getattr(model, name).requires_grad_(True)
        return model

    return build_model


def check_adapters(cfg: Any, *, experts_are_split: bool) -> None:
    """Refuse what adapters cannot be combined with, before a model is trained.

    Args:
        cfg: fairseq's configuration.
        experts_are_split: several processes hold the model's experts.

    Raises:
        OptionError: options contradict each other.
    """
    options = model_options(cfg.model)
    without = {"lora_rank": None}
    with spelt_as_typed():
        if not options.lora_rank:
            return
        if not cfg.checkpoint.finetune_from_model:
            way = {"checkpoint.finetune_from_model": "CHECKPOINT"}
            reason = "{lora_rank=} needs {checkpoint.finetune_from_model}, the model that it adapts"
            raise OptionError("lora_rank", options.lora_rank, reason, [way, without])
        if getattr(cfg.model, "bitnet", None):
            raise _contradiction(options, "{bitnet}, whose weights are quantised", {"bitnet": None}, without)
        if cfg.distributed_training.ddp_backend == "fully_sharded":
            way = {"distributed_training.ddp_backend": "pytorch_ddp"}
            raise _contradiction(options, "{distributed_training.ddp_backend} fully_sharded", way, without)
        if cfg.ema.store_ema:
            raise _contradiction(options, "{ema.store_ema}, which keeps all weights", {"ema.store_ema": None}, without)
        if experts_are_split:
            raise _contradiction(options, "experts in several processes", without)


def _contradiction(options: ModelOptions, what: str, *ways: dict[str, Any]) -> OptionError:
    return OptionError("lora_rank", options.lora_rank, f"{{lora_rank=}} cannot be combined with {what}", ways)


def save_adapters_alone(state: dict[str, Any], model: nn.Module, cfg: Any) -> None:
    """Take the weights that are not trained out of a state to be saved, in place, if the model has adapters.

    Args:
        state: of the Trainer.
        model: that is trained.
        cfg: fairseq's configuration.
    """
    if model_options(cfg.model).lora_rank:
        frozen = {
            name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad
        }
        leave_out_base(state, frozen, cfg.checkpoint.finetune_from_model, Path(cfg.checkpoint.save_dir))
