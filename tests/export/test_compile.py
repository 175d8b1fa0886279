"""torch.compile of exported models: generate gives the tokens of the model that is not compiled."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")
pytest.importorskip("transformers", minversion="5.24")

from tests.export.exported import exported, padded_tokens
from tests.tools.same import assert_same

SEARCHES: dict[str, dict[str, Any]] = {"greedy": {"num_beams": 1}, "beam": {"num_beams": 3}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [("gpt", "inductor"), ("gpt", "eager"), ("retnet", "eager"), ("longnet", "eager"), ("mt", "eager")],
)
def test_compiled_model_generates_the_same(name: str, backend: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = exported(name, tmp_path).load()
    tokens, mask = padded_tokens()
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    expected = [model.generate(tokens, **how, **search) for search in SEARCHES.values()]
    model.forward = torch.compile(model.forward, backend=backend)
    found = [model.generate(tokens, **how, **search) for search in SEARCHES.values()]
    for search, theirs, ours in zip(SEARCHES, found, expected, strict=True):
        assert_same(theirs, ours, search)
