"""Cutting text into samples: by hand-made cases, and that no token is lost or doubled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchscale_fairseq.data.text.blocks import BREAK_MODES, cut, document_starts
from torchscale_fairseq.data.text.index import UNIT


def units_of(lines: list[list[int]]) -> np.ndarray:
    """Units of lines; each line lists the tokens of its units. Bytes are three per token, and one for an empty line."""
    rows = [(3 * tokens or 1, tokens, place == len(line) - 1) for line in lines for place, tokens in enumerate(line)]
    return np.array(rows, UNIT)


@pytest.mark.parametrize(
    ("mode", "sizes"),
    [
        ("none", [8, 8, 8, 3]),
        ("complete", [7, 5, 5, 7, 3]),
        ("complete_doc", [7, 5, 5, 6, 4]),
        ("eos", [3, 4, 5, 5, 4, 2, 1, 3]),
    ],
)
def test_break_modes(mode: str, sizes: list[int]) -> None:
    """Lines of 3, 4, (document), 5, 9, 2, (document), 1, 3 tokens in samples of 8; that of 9 is cut into 5 and 4."""
    blocks = cut(units_of([[3], [4], [0], [5], [9], [2], [0], [1], [3]]), 8, mode)
    assert blocks["size"].tolist() == sizes


def test_documents_end_samples() -> None:
    lines = [[3], [0], [3], [0], [0], [3]]
    assert cut(units_of(lines), 8, "complete")["size"].tolist() == [6, 3]
    assert cut(units_of(lines), 8, "complete_doc")["size"].tolist() == [3, 3, 3]


def test_where_a_sample_lies() -> None:
    """The second sample of 4 tokens begins within the second unit and ends within the third."""
    block = cut(units_of([[3], [3, 2], [0], [4]]), 4, "none")[1]
    assert block.tolist() == (1, 2, 9, 15, 1, 4)


def test_room_for_a_token_in_front_of_each_document() -> None:
    """Lines of 3, 4, (document), 2, 5, (document), 1: three samples of 8 with the two places, in either mode."""
    units = units_of([[3], [4], [0], [2], [5], [0], [0], [1]])
    assert document_starts(units).tolist() == [7, 14]
    whole_lines = cut(units, 8, "complete", room_for_bos=True)
    assert whole_lines["size"].tolist() == [7, 7, 1] and whole_lines["skip"].tolist() == [0, 0, 0]
    filled = cut(units, 8, "none", room_for_bos=True)  # the first one ends with the place in front of the line of 2
    assert filled["size"].tolist() == [7, 7, 1] and filled["skip"].tolist() == [0, 0, 0]


def test_nothing_but_empty_lines() -> None:
    assert len(cut(units_of([[0], [0]]), 8, "complete")) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.just([0]), st.lists(st.integers(2, 30), min_size=1, max_size=3)), min_size=1, max_size=30),
    st.integers(4, 20),
    st.sampled_from(BREAK_MODES),
    st.booleans(),
)
def test_every_token_is_in_exactly_one_sample(
    lines: list[list[int]], capacity: int, mode: str, room_for_bos: bool
) -> None:
    units = units_of(lines)
    blocks = cut(units, capacity, mode, room_for_bos=room_for_bos)
    assert blocks["size"].sum() == units["tokens"].sum()
    starts = np.cumsum(units["tokens"]) - units["tokens"]
    place = 0
    for block in blocks:
        chosen = units[block["first"] : block["first"] + block["units"]]
        assert starts[block["first"]] + block["skip"] == place
        assert 0 < block["size"] <= capacity
        assert block["skip"] + block["size"] <= chosen["tokens"].sum()
        assert block["bytes"] == chosen["bytes"].sum()
        assert block["byte"] == units["bytes"][: block["first"]].sum()
        place += block["size"]
