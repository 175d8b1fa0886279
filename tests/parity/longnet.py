"""Where the official dilated attention computes the function of its paper."""

from tests.parity.vectors import Case


def branches(case: Case, length: int) -> list[tuple[int, int]]:
    """Segment length and dilation ratio of each branch; the official code cuts segments to the sequence."""
    config = case.meta["config"]
    pairs = zip(config["segment_length"], config["dilated_ratio"], strict=True)
    return [(min(segment, length), ratio) for segment, ratio in pairs]


def shifted_from(case: Case, length: int) -> int:
    """First position that may differ in a causal model: the official code shifts the segments after the first where a
    ratio does not divide the segment length."""
    return min([s for s, ratio in branches(case, length) if s < length and s % ratio], default=length)


def whole_until(case: Case, length: int, real: int) -> int:
    """Positions of a bidirectional model that see tokens only: official queries also attend to padding, and to the
    zeros that fill up the last segment.

    Args:
        length: of the padded batch.
        real: tokens of the row.
    """
    if shifted_from(case, length) < length:
        return 0
    end = real
    while end and any(end % segment for segment, _ in branches(case, length)):
        end -= 1
    return end
