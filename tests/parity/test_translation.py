"""The fairseq translation model equals TorchScale's ``mt`` wrapper."""

import pytest
import torch

from tests.parity.vectors import Case, cases, check_loss_and_gradients, compare

pytest.importorskip("fairseq")

from tests.parity.fairseq_models import loaded
from tests.parity.models import incremental_logits


@pytest.mark.parametrize("case", cases("fs_mt*"), ids=lambda c: c.name)
def test_official_translation_checkpoint(case: Case) -> None:
    model, keep = loaded(case), case["in/loss_keep"]
    source, target = case["in/src_tokens"], case["in/prev_output_tokens"]
    logits, _ = model(source, None, target)
    with torch.no_grad():
        encoder_out = model.encoder(source)
    steps = incremental_logits(model.decoder, target, encoder_out=encoder_out)
    compare(case, {"logits": logits, "incremental_logits": steps}, keep=keep)
    check_loss_and_gradients(case, model, logits)
