"""What the layers of a RetNet share: padding at the ends of rows costs no layer anything."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import assert_close
from torchscale_fairseq.core.layers.retention import MultiScaleRetention
from torchscale_fairseq.core.layers.retention_inputs import RetentionInputs
from torchscale_fairseq.core.ops.retention_tables import log_decays, retention_tables, token_counts

BATCH, LENGTH, WIDTH, HEADS = 3, 9, 16, 2
TOKEN = torch.arange(LENGTH)
MASKS = {
    "left": torch.tensor([[0], [4], [1]]) > TOKEN,
    "right": torch.tensor([[9], [2], [8]]) <= TOKEN,
    "both": (TOKEN < 2) | (torch.tensor([[9], [5], [7]]) <= TOKEN),
    "a whole row": torch.zeros(BATCH, LENGTH, dtype=torch.bool).index_fill(0, torch.tensor([1]), True),
    "inside": torch.tensor([[3], [4], [0]]) == TOKEN,
}
LOG_DECAY = log_decays(HEADS, "powers")


def inputs_of(x: Tensor, padding_mask: Tensor, **options: Any) -> RetentionInputs:
    counts = token_counts(LENGTH, torch.zeros(1, dtype=torch.long), padding_mask=padding_mask)
    options = {"has_state": False, "inclusive": False, "padding_mask": padding_mask, **options}
    return RetentionInputs.of(x, counts, LOG_DECAY, WIDTH // HEADS, **options)


def results(layer: MultiScaleRetention, x: Tensor, inputs: RetentionInputs, mask: Tensor) -> list[Tensor]:
    """Output of real tokens, and gradients."""
    output = layer(x, inputs).masked_fill(mask.unsqueeze(-1), 0.0)
    leaves = [x, *layer.parameters()]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize("clamp_scores", [False, True])
@pytest.mark.parametrize("chunkwise", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_equals_the_definition(kind: str, chunkwise: bool, clamp_scores: bool) -> None:
    torch.manual_seed(0)
    layer = MultiScaleRetention(
        WIDTH, 2 * WIDTH, HEADS, chunkwise=chunkwise, chunk_size=4, clamp_scores=clamp_scores
    ).double()
    x, mask = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True), MASKS[kind]
    counts = token_counts(LENGTH, torch.zeros(1, dtype=torch.long), padding_mask=mask)
    tables = retention_tables(counts, LOG_DECAY, WIDTH // HEADS, dtype=x.dtype, inclusive=False)
    expected = results(layer, x, RetentionInputs(tables, LOG_DECAY, mask), mask)
    for found, wanted in zip(results(layer, x, inputs_of(x, mask), mask), expected, strict=True):
        assert_close(found, wanted, "float64")


def test_layers_see_only_padding_that_keys_of_zero_do_not_hide() -> None:
    x = torch.zeros(BATCH, LENGTH, WIDTH)
    starts = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    seen = {kind: inputs_of(x, mask).padding_mask is not None for kind, mask in MASKS.items()}
    assert seen == {"left": False, "right": False, "both": False, "a whole row": False, "inside": True}
    for options in ({"has_state": True}, {"document_starts": starts}):
        inputs = inputs_of(x, MASKS["left"], **options)
        assert inputs.padding_mask is MASKS["left"] and bool(inputs.tables.key[0].all())


def test_hidden_keys_of_one_table_for_all_rows() -> None:
    """It rotates as a table for each row does, the keys of padding to zero."""
    mask = MASKS["both"]
    counts = token_counts(LENGTH, torch.zeros(1, dtype=torch.long), padding_mask=mask)
    options: dict[str, Any] = {"dtype": torch.float64, "inclusive": False, "hidden": mask}
    own, shared = (retention_tables(counts, LOG_DECAY, 8, **options, largest=largest) for largest in (None, LENGTH))
    assert own.rows is None and shared.query[0].size(0) == 1
    query, key = torch.randn(2, BATCH, LENGTH, HEADS, 8, dtype=torch.float64).unbind()
    (queries, keys), (other_queries, other_keys) = (tables.rotate(query, key) for tables in (own, shared))
    assert torch.equal(keys, other_keys) and not keys[mask].any() and keys[~mask].all()
    assert torch.equal(queries[~mask], other_queries[~mask])
