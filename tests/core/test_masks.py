"""Masks are bools or integers, by meaning, in every model of the core; floats are refused by name."""

import pytest
import torch

from tests.core.families import FAMILIES, Family, main_output
from torchscale_fairseq.core.errors import InputError

MASKED = {name: family for name, family in FAMILIES.items() if family.masks}
every_family = pytest.mark.parametrize("family", MASKED.values(), ids=list(MASKED))


@every_family
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_integers(family: Family, dtype: torch.dtype) -> None:
    model = family.build()
    expected = main_output(model(*family.inputs, **family.masks))
    masks = {name: mask.to(dtype) for name, mask in family.masks.items()}
    assert torch.equal(main_output(model(*family.inputs, **masks)), expected)


@every_family
def test_floats(family: Family) -> None:
    model = family.build()
    for name, mask in family.masks.items():
        with pytest.raises(InputError, match=rf"{name} is of torch.float32 and must be of bool .*{name}.bool\(\)"):
            model(*family.inputs, **{**family.masks, name: mask.float()})
