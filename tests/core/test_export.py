"""torch.export of every family: the program computes what the model does, for other values than it was traced with."""

import pytest
import torch
from torch import Tensor, nn

from tests.core.families import FAMILIES, Family, main_output
from tests.helpers import assert_close


class MainOutput(nn.Module):
    """Without reports, which torch.export cannot return."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor, **masks: Tensor) -> Tensor:
        return main_output(self.model(*inputs, **masks))


def real_tokens(output: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """Outputs that callers use; there is nothing to be said about those of padding."""
    padding = masks.get("self_attn_padding_mask", masks.get("encoder_padding_mask"))
    return output if padding is None or padding.size(1) != output.size(1) else output[~padding]


QUICK = ("bert_learned", "gpt_deepnorm", "beit3")


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, f in FAMILIES.items()],
)
def test_exported(family: Family) -> None:
    compare(family, {})
    compare(family, family.masks)


def compare(family: Family, masks: dict[str, Tensor]) -> None:
    model = MainOutput(family.build()).eval()
    with torch.no_grad():
        program = torch.export.export(model, family.inputs, masks).module()
        for rows in (0, 1):  # as traced, and with the rows and their padding exchanged
            inputs = tuple(x.roll(rows, 0) for x in family.inputs)
            others = {name: mask.roll(rows, 0) for name, mask in masks.items()}
            actual, expected = program(*inputs, **others), model(*inputs, **others)
            assert_close(real_tokens(actual, others), real_tokens(expected, others), "float32")


def test_sequences_of_any_length_up_to_the_table() -> None:
    family = FAMILIES["gpt_deepnorm"]
    model = MainOutput(family.build()).eval()
    length = torch.export.Dim("length", min=2, max=1024)
    program = torch.export.export(model, family.inputs, dynamic_shapes={"inputs": ({1: length},)}).module()
    longer = torch.cat(2 * family.inputs, 1)
    assert_close(program(longer), model(longer), "float32")
