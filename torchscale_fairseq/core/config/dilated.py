"""Options of dilated attention, which turns an encoder or decoder into a LongNet."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from ..option_error import OptionError
from .option import option
from .transformer import TransformerConfig

EXAMPLE = {"segment_length": "[2048,4096]", "dilated_ratio": "[1,2]"}
"""Branches that a message can suggest."""


@dataclass(frozen=True, kw_only=True)
class DilatedOptions(TransformerConfig):
    """Options of dilated attention, which turns an encoder or decoder into a LongNet."""

    segment_length: str | Sequence[int] | None = option(
        None,
        (
            "dilated attention (LongNet): segment length in tokens, one value per branch, such as "
            "'[2048,4096]' (default: dense attention)"
        ),
    )
    dilated_ratio: str | Sequence[int] | None = option(
        None,
        ("dilated attention (LongNet): keep every r-th token of a segment, one value of r per branch, such as '[1,2]'"),
    )

    def _check(self) -> None:
        super()._check()
        segments, ratios = self.segment_lengths, self.dilation_ratios
        if len(segments) != len(ratios):
            raise self._error(
                "segment_length",
                "{segment_length()} and {dilated_ratio()} must have one entry per branch each",
                {**EXAMPLE},
                {name: None for name, given in (("segment_length", segments), ("dilated_ratio", ratios)) if given},
                segment_length=list(segments),
                dilated_ratio=list(ratios),
            )
        if segments and self.has_relative_bias:
            raise self._error(
                "rel_pos_buckets",
                "{rel_pos_buckets()} is for dense attention and {segment_length} for dilated attention, which takes no "
                "bias",
                {"rel_pos_buckets": None, "max_rel_pos": None, "xpos_rel_pos": True},
            )

    @property
    def backend(self) -> str:
        """The attention backend in use."""
        return self.attention_backend or "sdpa" if self.segment_lengths else super().backend

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Tokens per segment, one entry per branch; none for dense attention."""
        return parse_integers("segment_length", self.segment_length, example=EXAMPLE["segment_length"])

    @property
    def dilation_ratios(self) -> tuple[int, ...]:
        """Distance of the tokens that a segment keeps, likewise."""
        return parse_integers("dilated_ratio", self.dilated_ratio, example=EXAMPLE["dilated_ratio"])


def parse_integers(name: str, value: str | Sequence[int] | None, *, at_least: int = 1, example: str) -> tuple[int, ...]:
    """A list of whole numbers, or a string that spells one.

    Args:
        name: of the option.
        value: the list, its spelling, or None for an empty one.
        at_least: the smallest number that is valid.
        example: a value that a message can suggest.

    Raises:
        OptionError: the value is no such list.
    """
    if value is None or value == "":
        return ()
    try:
        parsed = ast.literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        parsed = None
    if not (isinstance(parsed, (list, tuple)) and all(type(n) is int and n >= at_least for n in parsed)):
        condition = f"{{{name}()}} must be a list of whole numbers from {at_least} on, such as {example!r}"
        raise OptionError(name, value, condition, [{name: example}])
    return tuple(parsed)
