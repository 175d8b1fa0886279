"""benchmarks/decoding.py: both kinds of generation on tiny models."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("fairseq")

from benchmarks import decoding
from tests.helpers import assert_close
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
def test_tokens_follow_the_prompt(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As they follow it in a forward pass. The pass over the prompt begins both sides, and is subtracted."""
    entries = words()
    options = decoding.parse_options(["--device", "cpu", "--tokens", "3", "--prompt", "5", "--repeats", "1"])
    model = tiny(arch, entries).eval()
    plain = model.decoder.forward
    first_pass = decoding.read_first(model, entries, 2, options)
    logits = first_pass()[0]
    assert logits.shape[:2] == (2, 6)
    seen: list[Any] = []
    prompted = model.decoder.forward

    def noted(tokens: Tensor, **given: Any) -> Any:
        seen.append(prompted(tokens, **given))
        return seen[-1]

    model.decoder.forward = noted
    run = decoding.sampling(model, entries, 2, options)
    found = torch.tensor(run())
    texts = torch.cat((torch.full((2, 1), entries.eos()), found), 1)
    with torch.no_grad():
        prompt = torch.randint(entries.nspecial, len(entries), (2, 5), generator=torch.Generator().manual_seed(3))
        expected = plain(torch.cat((prompt, texts), 1))[0]
    for step, (output, *_) in enumerate(seen):
        assert_close(output[:, -1:], expected[:, 5 + step : 6 + step], "float32")
    decoding.compare({"a side": run}, 6, "tokens", "title", options, first_pass)
    assert "a side" in capsys.readouterr().err


def test_packed_weights_are_those_of_the_model() -> None:
    entries, options = words(), decoding.parse_options(["--device", "cpu"])
    full, packed = (decoding.build(name, entries, 9, options) for name in ("bitnet_small", "bitnet_small:packed"))
    tokens = torch.full((1, 4), entries.eos())
    with torch.no_grad():
        found, expected = (model(tokens)[0] for model in (packed, full))
    assert_close(found, expected, "float32")
    assert any(name.endswith("packed") for name, _ in packed.named_buffers())


@pytest.mark.parametrize("arch", ["gpt_deepnorm_small", "retnet_small"])
def test_models_are_built_with_every_option(arch: str) -> None:
    options = decoding.parse_options(["--device", "cpu"])
    assert decoding.build(arch, words(), 9, options).max_positions() >= 9
