"""Masks are bools or integers, by meaning, in every model of the core; floats are refused by name."""

import pytest
import torch

from tests.core.families import FAMILIES, Family, main_output
from tests.core.models import encoder_decoder, tokens
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.masks import empty_mask, is_traced, marked

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


def test_a_decoder_need_not_ask_whether_a_source_without_a_mask_is_padded() -> None:
    """On the meta device, which has no values to give."""
    source, target = tokens(2, 8).to("meta"), tokens(2, 5).to("meta")
    assert encoder_decoder().to("meta")(source, target)[0].shape[:2] == (2, 5)


def test_an_empty_mask_is_read_after_a_change() -> None:
    mask = empty_mask((2, 3), torch.device("cpu"))
    assert marked(mask) is None and mask.shape == (2, 3)
    mask[0, 1] = True
    assert marked(mask) is mask
    with torch.inference_mode():
        assert marked(empty_mask((2, 3), torch.device("cpu"))) is None


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch.compile is taken for torch.export")
def test_compiled_code_is_not_traced() -> None:
    """Kernels that an export cannot hold serve compiled code."""

    class Tells(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + is_traced()

    zero = torch.zeros(())
    assert torch.compile(Tells(), backend="eager", fullgraph=True)(zero) == 0
    for strict in (True, False):
        assert torch.export.export(Tells(), (zero,), strict=strict).module()(zero) == 1
