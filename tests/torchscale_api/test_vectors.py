"""TorchScale's names against the golden vectors: attributes of configs, state dicts, outputs and gradients."""

from typing import Any

import pytest
import torch

from tests.helpers import assert_close
from tests.parity.longnet import whole_until
from tests.parity.models import beit3_outputs, decoder_outputs, encoder_decoder_outputs, encoder_outputs
from tests.parity.vectors import Case, cases, check_loss_and_gradients, compare, ids
from tests.torchscale_api.models import build, config_of, incremental_logits, loaded

UNFIT = ("flash", "limits", "misaligned", "leftpad", "incremental")
"""Their outputs show defects, or kernels that hide them (tests/parity compares what can be compared)."""
ENCODERS = cases("enc_*", without=(*UNFIT, "moe"))
DECODERS = cases("dec_*", without=(*UNFIT, "moe")) + cases("ln_dec*", without=UNFIT)
RETNETS = cases("ret_*", without=(*UNFIT, "moe"))
MIXTURES = cases("enc_xmoe") + cases("*_moe*", without=("layer", "moe_top", "ret", "fs"))
ALL = [
    c
    for c in ENCODERS + cases("ln_enc*") + DECODERS + RETNETS + MIXTURES + cases("ed_*") + cases("beit3")
    if "cls" in c.meta["build"]
]


@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_config_and_names(case: Case) -> None:
    """All attributes of the official config after postprocessing; all names and shapes of the state dict."""
    config = config_of(case)
    different = {
        name: (getattr(config, name, "missing"), value)
        for name, value in case.meta["config"].items()
        if getattr(config, name, "missing") != value and name != "encoder_embedding_type"  # which was set by hand
    }
    assert not different
    state = build(case).state_dict()
    assert {name: value.shape for name, value in case.state().items()} == {n: v.shape for n, v in state.items()}


def test_every_kind_has_cases() -> None:
    assert all(len(found) > 2 for found in (ENCODERS, DECODERS, RETNETS, MIXTURES))


@pytest.mark.parametrize("case", ENCODERS, ids=ids(ENCODERS))
def test_encoder(case: Case) -> None:
    model = loaded(case)
    found = encoder_outputs(case, model)
    compare(case, found)
    check_loss_and_gradients(case, model, found["encoder_out"])


@pytest.mark.parametrize("case", cases("ln_enc*"), ids=ids(cases("ln_enc*")))
@torch.no_grad()
def test_longnet_encoder(case: Case) -> None:
    """Up to the last segment that is full of tokens: the official code attends to padding."""
    mask = case["in/encoder_padding_mask"]
    actual = loaded(case)(case["in/src_tokens"], mask)["encoder_out"]
    for row, real in enumerate((~mask).sum(1).tolist()):
        end = whole_until(case, mask.size(1), real)
        assert_close(actual[row, :end], case["out/encoder_out"][row, :end], "parity", "encoder_out")


@pytest.mark.parametrize("case", cases("enc_incremental"), ids=ids(cases("enc_incremental")))
@torch.no_grad()
def test_encoder_with_a_state(case: Case) -> None:
    """The state is a list of dictionaries with prev_key and prev_value."""
    model: Any = loaded(case)
    prefix = case.meta["extra"]["prefix"]
    tokens, positions = case["in/src_tokens"], case["in/positions"]
    state: list[dict[str, Any]] = [{} for _ in model.layers]
    first = model(tokens[:, :prefix], positions=positions[:, :prefix], incremental_state=state)
    rest = model(tokens[:, prefix:], positions=positions[:, prefix:], incremental_state=state)
    found = {"prefix_out": first["encoder_out"], "rest_out": rest["encoder_out"]}
    compare(case, {**found, "cache_prev_key.0": state[0]["prev_key"]})


@pytest.mark.parametrize("case", DECODERS, ids=ids(DECODERS))
def test_decoder(case: Case) -> None:
    model, tokens = loaded(case), case["in/prev_output_tokens"]
    found = decoder_outputs(case, model)
    keep = case.get("in/loss_keep")
    keep = torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep
    compare(case, found, keep=keep)
    check_loss_and_gradients(case, model, found["logits"])
    with torch.no_grad():
        steps = torch.stack(incremental_logits(model, tokens), 1)
        assert_close(steps, model(tokens)[0], "parity", "steps")
        if "out/incremental_logits" in case.tensors:
            compare(case, {"incremental_logits": steps}, keep=keep)


@pytest.mark.parametrize("case", cases("ed_*"), ids=ids(cases("ed_*")))
def test_encoder_decoder(case: Case) -> None:
    model = loaded(case)
    found = encoder_decoder_outputs(case, model)
    compare(case, found)
    check_loss_and_gradients(case, model, found["logits"])


@pytest.mark.parametrize("case", RETNETS, ids=ids(RETNETS))
def test_retnet(case: Case) -> None:
    """The three forms, of which TorchScale's chunkwise one alone differs from the others."""
    model: Any = loaded(case)
    tokens = case["in/prev_output_tokens"]
    logits = model(tokens)[0]
    compare(case, {"logits_parallel": logits}, "parity_retention")
    if "in/loss_target" in case.tensors and "out/loss" in case.tensors:
        check_loss_and_gradients(case, model, logits)
    with torch.no_grad():
        compare(case, {"logits_recurrent": torch.stack(incremental_logits(model, tokens), 1)}, "parity_retention")
        model.chunkwise_recurrent = True
        compare(case, {"logits_parallel": model(tokens)[0]}, "parity_retention")


@pytest.mark.parametrize("case", cases("beit3"), ids=ids(cases("beit3")))
def test_beit3(case: Case) -> None:
    model = loaded(case)
    found = beit3_outputs(case, model)
    compare(case, found)
