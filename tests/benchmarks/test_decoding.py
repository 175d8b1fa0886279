"""benchmarks/decoding.py: both kinds of generation on tiny models."""

from typing import Any

import pytest

pytest.importorskip("fairseq")

from benchmarks import decoding
from tests.plugin.built import tiny, words


def test_sides_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    entries = words()
    options = decoding.parse_options(["--device", "cpu", "--tokens", "3", "--sentences", "5", "--longest", "9"])
    runs: dict[str, Any] = {
        "sampling": decoding.sampling(tiny("gpt_deepnorm_small", entries), entries, 2, options),
        "beam search": decoding.translation(tiny("mt_deepnorm_small", entries), entries, options),
    }
    for title, run in runs.items():
        sides = {decoding.USUAL: run, decoding.RECORDED: run}
        rows = decoding.compare(sides, 5, "sentences", title, options)
        assert rows[1].endswith(f"{'2 of 2' if title == 'sampling' else '5 of 5'} equal |")
        assert title in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["gpt_deepnorm_small", "retnet_small"])
def test_models_are_built_with_every_option(arch: str) -> None:
    options = decoding.parse_options(["--device", "cpu"])
    assert decoding.build(arch, words(), 9, options).max_positions() >= 9
