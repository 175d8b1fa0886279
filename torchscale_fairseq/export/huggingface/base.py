"""The base of the exported models: a model of the core as a ``PreTrainedModel``."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .configuration import CoreConfig
from .names import keep_stacked, tied_names

KEPT = "kept_tables"
"""Attribute of a module that holds copies of its tables."""


class CoreModel(PreTrainedModel):
    """A model of the core under the name ``core``. Subclasses say what forward takes and returns.

    Args:
        config: with the core's options.
    """

    config_class = CoreConfig
    base_model_prefix = "core"
    main_input_name = "input_ids"
    _tied_weights_keys: Any = None

    def __init__(self, config: CoreConfig, *_: Any, **__: Any):
        super().__init__(config)
        self.core: Any = build_core(config)
        self._has_values = True
        self._tied_weights_keys = tied_names(self) or None
        self._keys_to_ignore_on_save = list(self._tied_weights_keys or ())
        self.config.tie_word_embeddings = bool(self._tied_weights_keys)
        self.post_init()
        self._has_values = False

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what weights that were loaded lack: tables, which transformers has overwritten, and parameters of new
        heads. In a model that is built anew the core has initialised all."""
        restore_tables(module)
        if not self._has_values:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.core.embed_tokens

    def balance_loss(self, reports: list[Tensor | None]) -> Tensor | float:
        """The loss that experts add in training.

        Args:
            reports: ``l_aux`` of the core, balance losses of the layers.
        """
        losses = [loss for loss in reports if loss is not None]
        return self.config.router_aux_loss_coef * torch.stack(losses).mean() if losses else 0.0


def build_core(config: CoreConfig) -> nn.Module:
    """The core with real tables on the CPU, also where transformers builds models without values and in half precision.

    Tables of positions are no part of the weights, so that nothing would fill them.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            core = config.build_core()
    finally:
        torch.set_default_dtype(dtype)
    keep_stacked(core)
    core.to(dtype)
    keep_tables(core)
    return core


def keep_tables(model: nn.Module) -> None:
    """Hold a copy of each table in its module, out of transformers' sight."""
    for module in model.modules():
        if module._non_persistent_buffers_set:
            tables = {name: getattr(module, name).clone() for name in module._non_persistent_buffers_set}
            setattr(module, KEPT, tables)


def restore_tables(module: nn.Module) -> None:
    """Fill the tables of a module from the copies."""
    for name, table in getattr(module, KEPT, {}).items():
        getattr(module, name).copy_(table)


def hidden(mask: Tensor | None) -> Tensor | None:
    """The core's mask, True for padding, from transformers', 1 for tokens."""
    return None if mask is None else mask.eq(0)
