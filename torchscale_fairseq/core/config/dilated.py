"""Options of dilated attention, which turns an encoder or decoder into a LongNet."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from .option import option
from .transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class DilatedOptions(TransformerConfig):
    """Options of dilated attention, which turns an encoder or decoder into a LongNet."""

    segment_length: str | Sequence[int] | None = option(
        None, "dilated attention (LongNet): tokens per segment, a list with one entry per branch, as '[2048,4096]'"
    )
    dilated_ratio: str | Sequence[int] | None = option(
        None, "keep every r-th token of a segment, a list with one entry per branch, as '[1,2]'"
    )

    def _check(self) -> None:
        super()._check()
        segments, ratios = self.segment_lengths, self.dilation_ratios
        if len(segments) != len(ratios):
            raise ValueError(
                f"segment_length ({list(segments)}) and dilated_ratio ({list(ratios)}) must have one entry per branch "
                "each; give both lists ('[2048,4096]' and '[1,2]', say), or neither."
            )
        if segments and self.has_relative_bias:
            raise ValueError(
                f"rel_pos_buckets ({self.rel_pos_buckets}) is for dense attention and segment_length for dilated "
                "attention, which takes no bias; use xpos_rel_pos."
            )

    @property
    def backend(self) -> str:
        """The attention backend in use."""
        return self.attention_backend or "sdpa" if self.segment_lengths else super().backend

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Tokens per segment, one entry per branch; none for dense attention."""
        return _integers("segment_length", self.segment_length)

    @property
    def dilation_ratios(self) -> tuple[int, ...]:
        """Distance of the tokens that a segment keeps, likewise."""
        return _integers("dilated_ratio", self.dilated_ratio)


def _integers(name: str, value: str | Sequence[int] | None) -> tuple[int, ...]:
    """A list of positive integers, or a string that spells one."""
    if value is None or value == "":
        return ()
    try:
        parsed = ast.literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        parsed = None
    if not (isinstance(parsed, (list, tuple)) and all(type(n) is int and n >= 1 for n in parsed)):
        raise ValueError(f"{name} ({value}) must be a list of whole numbers from 1 on, such as '[2048,4096]'.")
    return tuple(parsed)
