"""BEiT3 equals the official one under ``torchscale_compatible``."""

import pytest

from tests.parity.models import beit3_outputs, loaded
from tests.parity.vectors import Case, cases, check_loss_and_gradients, compare


@pytest.mark.parametrize("case", cases("beit3"), ids=lambda case: case.name)
def test_beit3(case: Case) -> None:
    model = loaded(case)
    found = beit3_outputs(case, model)
    compare(case, found)
    check_loss_and_gradients(case, model, found["both.encoder_out"])
