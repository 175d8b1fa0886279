"""--pack-sentences: batches of sentence pairs are trained as one row of each language, without padding."""

from typing import Any

from torch import Tensor, nn

from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed

SOURCE_STARTS, TARGET_STARTS = "source_starts", "document_starts"
"""Arguments by which a model learns where the sentences of a row begin."""
CRITERIONS = (
    "cross_entropy",
    "label_smoothed_cross_entropy",
    "linear_cross_entropy",
    "moe_cross_entropy",
    "moe_linear_cross_entropy",
    "moe_label_smoothed_cross_entropy",
)
"""Criterions whose loss is a sum over tokens."""


def packs_sentences(model: nn.Module) -> bool:
    """Whether batches of a model are to be packed now: in training, not where sentences are translated."""
    return bool(getattr(model, "packs_sentences", False)) and model.training


def packed_sentences(batch: dict[str, Any], pad: int) -> dict[str, Any]:
    """A batch of fairseq's translation tasks as one row.

    Args:
        batch: on the host; left or right padding.
        pad: the token.

    Returns:
        The batch with ``src_tokens`` (1, source tokens), ``prev_output_tokens`` and ``target`` (1, target tokens), and
        ``source_starts`` and ``document_starts``, True for the first token of each sentence.
    """
    inputs = batch["net_input"]
    source, previous = inputs["src_tokens"], inputs["prev_output_tokens"]
    packed = {
        "src_tokens": _row(source, source != pad),
        "src_lengths": inputs["src_lengths"].sum()[None],
        "prev_output_tokens": _row(previous, previous != pad),
        SOURCE_STARTS: _starts(source != pad),
        TARGET_STARTS: _starts(previous != pad),
    }
    return {**batch, "target": _row(batch["target"], previous != pad), "net_input": {**inputs, **packed}}


def _row(tokens: Tensor, real: Tensor) -> Tensor:
    return tokens[real][None]


def _starts(real: Tensor) -> Tensor:
    first = real & (real.cumsum(1) == 1)
    return first[real][None]


def check_packed_sentences(cfg: Any, model: nn.Module) -> None:
    """Refuse what packed sentences cannot be trained with.

    Args:
        cfg: fairseq's configuration.
        model: as built.

    Raises:
        OptionError: options contradict each other.
    """
    if not getattr(model, "packs_sentences", False):
        return
    with spelt_as_typed():
        if cfg.optimization.sentence_avg:
            raise _contradiction("{optimization.sentence_avg}", {"optimization.sentence_avg": None})
        if getattr(cfg.criterion, "ignore_prefix_size", 0):
            name = "criterion.ignore_prefix_size"
            raise _contradiction(f"{{{name}}}, which counts from the first token of a row", {name: None})
        if cfg.criterion._name not in CRITERIONS:
            ways = [{"criterion": "label_smoothed_cross_entropy"}]
            raise _contradiction(f"{{criterion}} {cfg.criterion._name}, which reads the rows of a batch", *ways)


def _contradiction(what: str, *ways: dict[str, Any]) -> OptionError:
    condition = f"{{pack_sentences}} cannot be combined with {what}"
    return OptionError("pack_sentences", True, condition, [*ways, {"pack_sentences": None}])
