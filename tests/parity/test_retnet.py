"""RetNet equals the official one under ``torchscale_compatible``, in all forms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import PARITY_GRADIENT, TOLERANCES, assert_close, assert_gradient_close
from tests.parity.initial_values import check_rows, depths_of, groups, sides, sizes_of
from tests.parity.models import decoder_outputs, incremental_logits, loaded
from tests.parity.vectors import Case, cases, check_loss_and_gradients, compare, ids, loss_of
from torchscale_fairseq.core.ops.retention import parallel_retention
from torchscale_fairseq.core.ops.retention_tables import log_decays, retention_tables, token_counts

CASES = cases("ret_*", without=("moe", "limits"))


def forms(case: Case) -> dict[str, nn.Module]:
    return {"parallel": loaded(case), "chunkwise": loaded(case, chunkwise_recurrent=True)}


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_retnet(case: Case) -> None:
    tokens = case["in/prev_output_tokens"]
    for name, model in forms(case).items():
        found = decoder_outputs(case, model)
        logits = found.pop("logits")
        compare(case, {"logits_parallel": logits, **found}, "parity_retention")
        check_loss_and_gradients(case, model, logits)
        steps = incremental_logits(model, tokens)
        compare(case, {"logits_parallel": steps, "logits_recurrent": steps}, "parity_retention")
        assert_close(steps, logits.detach(), "float32", f"steps of {name}")


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
@torch.no_grad()
def test_default_normalisation_is_the_official_recurrent_forms(case: Case) -> None:
    """Closer than to the parallel form, whose clamp at 1 shows through the norm's epsilon."""
    model = loaded(case)
    for layer in model.layers:
        assert layer.retention.clamp_scores
        layer.retention.clamp_scores = False
    compare(case, {"logits_recurrent": model(case["in/prev_output_tokens"])[0]})


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_official_chunkwise_form(case: Case) -> None:
    """Ours is as near to it as the official parallel form is, and gradients agree where the official forms do: its
    normaliser departs from that of the others at small weights, a defect that is not reproduced
    (``test_departures.py``)."""
    model = forms(case)["chunkwise"]
    logits, _ = model(case["in/prev_output_tokens"])
    chunkwise, parallel = case["out/logits_chunkwise"], case["out/logits_parallel"]
    allowed = TOLERANCES["parity_retention"].atol * chunkwise.abs().max() + (chunkwise - parallel).abs().max()
    assert (logits - chunkwise).abs().max() <= allowed
    model.zero_grad()
    loss_of(case, logits).backward()
    if case.meta["extra"]["forms"]["grad_chunkwise_vs_parallel_worst_rel"] < PARITY_GRADIENT:
        for name, expected in case.group("grad_chunkwise/").items():
            assert_gradient_close(model.get_parameter(name).grad, expected, name)


@pytest.mark.parametrize("case", cases("ret_limits"), ids=lambda c: c.name)
def test_what_the_official_retnet_cannot_do(case: Case) -> None:
    """A prompt in one pass, and beams; its state, without the root of the decays that the official one divides by."""
    model, tokens = loaded(case), case["in/prev_output_tokens"]
    logits, _ = model(tokens)
    compare(case, {"logits_parallel": logits}, "parity_retention")
    scale = case["out/state_scale"].double()  # the sum of the decays of as many tokens as the state has seen
    log_decay = log_decays(scale.numel(), "powers")
    seen = int((torch.log1p(-scale * (1 - log_decay.exp())) / log_decay).mean().round())
    state: dict[str, Any] = {}
    with torch.no_grad():
        model(tokens[:, :seen], incremental_state=state)
        content = state["decoding_state"].layers[0].self_attn.content[..., :-1]  # the last channel sums scores
        ours = content.transpose(-1, -2) / scale.float().sqrt().view(1, -1, 1, 1)
        assert_close(ours, case["out/state_prev_key_value"], "parity_retention", "state")
        rows = torch.arange(2 * len(tokens)).flip(0) % len(tokens)
        model.reorder_incremental_state(state, rows)
        beams, _ = model(tokens[rows], incremental_state=state)
    assert_close(beams, logits[rows, seen:], "parity_retention", "beams")


@pytest.mark.parametrize("case", cases("pos_retnet"), ids=lambda c: c.name)
def test_positions_and_decays(case: Case) -> None:
    options, length = case.meta["config_kwargs"], case.meta["extra"]["slen"]
    heads, chunk = options["decoder_retention_heads"], options["recurrent_chunk_size"]
    key_dim = options["decoder_embed_dim"] // heads
    log_decay = log_decays(heads, "powers")
    assert_close(log_decay.float(), case["buffer/decay"], "parity_exact", "decay")
    counts = token_counts(length, torch.zeros(1, dtype=torch.long))
    tables = retention_tables(counts, log_decay, key_dim, dtype=torch.float32, inclusive=True)
    for form in ("parallel", "chunkwise"):
        for table, name in zip(tables.key, ("cos", "sin"), strict=True):
            full = table[0, :, 0].repeat_interleave(2, -1) * key_dim**0.5
            assert_close(full, case[f"out/{form}.{name}"], "parity_exact", f"{form}.{name}")
    for table, name in zip(tables.key, ("cos", "sin"), strict=True):
        assert_close(table[0, -1, 0].repeat_interleave(2) * key_dim**0.5, case[f"out/recurrent.{name}"], "parity_exact")
    assert_close(log_decay.exp().float(), case["out/recurrent.decay"], "parity_exact", "recurrent.decay")
    assert_close(mask(log_decay, length), case["out/parallel.mask"], "parity_exact", "parallel.mask")
    assert_close(mask(log_decay, chunk), case["out/chunkwise.inner_mask"], "parity_exact", "chunkwise.inner_mask")
    cross = (chunk * log_decay).exp().float().view(-1, 1, 1)
    assert_close(cross, case["out/chunkwise.cross_decay"], "parity_operator", "chunkwise.cross_decay")


def mask(log_decay: Tensor, length: int) -> Tensor:
    """What a query takes of each value, (heads, queries, keys), read off the operation and the tables' scale."""
    heads = log_decay.numel()
    counts = token_counts(length, torch.zeros(1, dtype=torch.long))
    cos, sin = retention_tables(counts, log_decay, 2, dtype=torch.float32, inclusive=True).query
    scale = (cos.square() + sin.square()).sqrt()
    ones = torch.ones(1, length, heads, 1)
    value = torch.eye(length)[None, :, None].expand(1, length, heads, length)
    output, _ = parallel_retention(ones * scale, ones, value, log_decay)
    return output[0].transpose(0, 1)


@pytest.mark.parametrize("group", groups("retnet"))
def test_initial_values(group: str) -> None:
    rows = groups("retnet")[group]
    options = {"deepnorm": "deepnorm" in rows[0]["mode"]}
    check_rows(rows, sides("retnet", depths_of(rows[0]["layers"]), sizes_of(rows), **options))
