"""``--retain-dropout``: Monte Carlo dropout, which fairseq switches on by the class of its own dropout modules."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from torchscale_fairseq.core.layers.attention import MultiheadAttention
from torchscale_fairseq.hooks.contracts import sides_of
from torchscale_fairseq.hooks.generation.repairs import dropout_names


class RetainsDropout:
    """Goes before fairseq's class in a model's bases."""

    def make_generation_fast_(
        self, retain_dropout: bool = False, retain_dropout_modules: Any = None, **kwargs: Any
    ) -> None:
        """Called by fairseq before it generates. Models cannot be trained afterwards, and stay in the mode that their
        modules have now.

        Args:
            retain_dropout: whether dropout stays on.
            retain_dropout_modules: stock's names of the modules where it does (``TransformerEncoder``,
                ``TransformerDecoderLayer``, ``MultiheadAttention``); None for all.
            kwargs: for fairseq.

        Raises:
            InputError: a name fits no module.
        """
        super().make_generation_fast_(**kwargs)  # type: ignore[misc]
        if not retain_dropout:
            return
        dropouts = list(_dropouts(self))
        known = {name for name, _ in dropouts}
        names = known if retain_dropout_modules is None else dropout_names(retain_dropout_modules, known)
        for name, module in dropouts:
            module.training = name in names


def _dropouts(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules that drop values, and for which being in training means nothing else, with the name of the module of
    stock's Transformer that has the dropout in this place."""
    for side, stack in sides_of(model).items():
        for path, module in stack.named_modules():
            if isinstance(module, MultiheadAttention):
                yield "MultiheadAttention", module
            elif isinstance(module, nn.Dropout):
                yield f"Transformer{side.title()}{'Layer' if '.' in path else ''}", module
