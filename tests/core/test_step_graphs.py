"""Recorded steps of decoding equal the full forward. Recording is played by calling the step again, on the CPU."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.core.decoding import mask_of, single_steps
from tests.core.models import VARIANTS, decoder, encoder_decoder, retnet, tokens
from tests.helpers import assert_close
from torchscale_fairseq.core.architectures.step_graphs import StepGraphs
from torchscale_fairseq.core.layers import cache, static_state

NAMES = [name for name, variant in VARIANTS.items() if "torchscale_compatible" not in variant]


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that states outgrow it."""
    monkeypatch.setattr(static_state, "LEAST_TOKENS", 4)


def again(step: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
    """A replay that computes anew. Like a capture it runs the step twice, on any content."""
    step(), step()
    return step


def recording(model: Any) -> StepGraphs:
    graphs = StepGraphs(again)
    model.record_steps(graphs)
    return graphs


MODELS: dict[str, Callable[[], Any]] = {
    **{name: partial(decoder, **VARIANTS[name]) for name in NAMES},
    "retnet": retnet,
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_steps_match_full_forward(name: str) -> None:
    model, target = MODELS[name](), tokens(3, 12)
    full, _ = model(target)
    graphs = recording(model)
    assert_close(single_steps(model, target, 2), full, str(full.dtype).removeprefix("torch."))
    assert graphs.recorded >= (1 if name == "retnet" else 2)


@pytest.mark.parametrize("name", ["subln", "xpos", "retnet"])
@torch.no_grad()
def test_sequences_move_and_end(name: str) -> None:
    """The second batch finds nothing of the first one, whose content was not finite."""
    model, target = MODELS[name](), tokens(9, 12)
    full, _ = model(target)
    graphs = recording(model)
    orders = [None, [1, 0, 2, 3, 4, 5, 6, 8, 7], range(9), [7, 7, 1], [2, 0], [0], [0]]
    for poisoned in (True, False):
        state: dict[Any, Any] = {}
        rows = torch.arange(9)
        for step, listed in enumerate(orders):
            if listed is not None:
                order = torch.tensor(listed)
                model.reorder_incremental_state(state, order)
                rows = rows[order]
            logits, _ = model(target[rows, : step + 1], incremental_state=state)
            if not poisoned:
                assert_close(logits[:, -1], full[rows, step], "float32", f"step {step}")
            elif step == 5:
                state["decoding_state"].home.content.fill_(torch.nan)
    assert graphs.recorded >= 2


@pytest.mark.parametrize("name", ["subln", "retnet"])
@torch.no_grad()
def test_large_content_of_sequences_that_stay_is_not_moved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_state, "LARGE", 0)
    model, target = MODELS[name](), tokens(3, 7)
    moves: dict[tuple[int, ...], None] = {}
    select = static_state._select

    def noted(content: Tensor, axis: int, rows: Tensor) -> None:
        moves[tuple(rows.tolist())] = None
        select(content, axis, rows)

    monkeypatch.setattr(static_state, "_select", noted)
    recording(model)
    state: dict[Any, Any] = {}
    for end in (5, 6):
        model(target[:, :end], incremental_state=state)
    for order in ([0, 1, 2], [0, 2, 1], [0, 1]):
        model.reorder_incremental_state(state, torch.tensor(order))
    assert list(moves) == [(0, 2, 1), (0, 1)]


@pytest.mark.parametrize("name", ["subln", "relative_bias", "xpos_deepnorm_sinusoidal"])
@torch.no_grad()
def test_beams_share_their_sentence(name: str) -> None:
    """Beams that move, a sentence that ends, and beams that leave theirs."""
    model = encoder_decoder(**VARIANTS[name])
    source, beams = tokens(3, 9), 2
    encoder_out = model.encoder(source, mask_of([9, 4, 6], 9, "left"))
    graphs = recording(model.decoder)
    state: dict[Any, Any] = {}
    target = tokens(6, 1, seed=2)
    sentence = torch.arange(3).repeat_interleave(beams)
    moves = [None, [1, 0, 2, 2, 5, 4], [0, 1, 4, 5], [1, 1, 2, 3], [1, 1, 2, 3], [0, 2, 1, 3]]
    for step, move in enumerate(moves):
        if move is not None:
            order = torch.tensor(move)
            model.decoder.reorder_incremental_state(state, order)
            target, sentence = target[order], sentence[order]
            target = torch.cat((target, tokens(len(order), 1, seed=10 + step)), 1)
        logits, _ = model.decoder(target, encoder_out=encoder_out, incremental_state=state)
        own = {name: encoder_out[name][sentence] for name in ("encoder_out", "encoder_padding_mask")}
        full, _ = model.decoder(target, encoder_out=own)
        assert_close(logits[:, -1], full[:, -1], "float32", f"step {step}")
    assert graphs.recorded >= 2


@torch.no_grad()
def test_xpos_moves_its_centre_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_XPOS_RECENTRE_DISTANCE", 3)
    model, target = decoder(xpos_rel_pos=True, xpos_scale_base=8), tokens(2, 40)
    full, _ = model(target)
    recording(model)
    assert_close(single_steps(model, target, 5), full, "float32")


@torch.no_grad()
def test_padding_experts_and_observers_are_left_to_usual_steps() -> None:
    """So are two states at a time, of which the second one is computed as usual."""
    target = tokens(3, 9)
    watched: Any = decoder()
    watched.layers[0].ffn.fc1.register_forward_hook(lambda *_: None)
    for model, mask in (
        (decoder(), mask_of([9, 4, 9], 9, "left")),
        (decoder(moe_freq=2, moe_expert_count=2), None),
        (decoder(segment_length="[4]", dilated_ratio="[1]"), None),
        (watched, None),
    ):
        graphs = recording(model)
        single_steps(model, target, 2, mask)
        assert graphs.recorded == 0
    model = decoder()
    full, _ = model(target)
    recording(model)
    states: list[dict[Any, Any]] = [{}, {}]
    for end in range(1, 10):
        for state in states:
            logits, _ = model(target[:, :end], incremental_state=state)
            assert_close(logits[:, -1], full[:, end - 1], "float32")


@torch.no_grad()
def test_weights_may_change_and_models_be_copied() -> None:
    model, target = decoder(), tokens(3, 9)
    graphs = recording(model)
    single_steps(model, target)
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5
    full, _ = model(target)
    for other in (model, copy.deepcopy(model)):
        assert_close(single_steps(other, target), full, "float32")
    assert graphs.recorded >= 1
    assert pickle.loads(pickle.dumps(graphs)).recorded == 0


class Negative(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight


@pytest.mark.parametrize("kind", ["forward", "parametrization"])
@torch.no_grad()
def test_layers_may_change_after_steps_are_recorded(kind: str) -> None:
    """What was recorded before is not replayed, though all weights are where they were."""
    made: list[Callable[[], Tensor]] = []
    replayed: list[Callable[[], Tensor]] = []

    def record(step: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            replayed.append(step)
            return step()

        made.append(step)
        return replay

    model, target = retnet(), tokens(3, 9)
    model.record_steps(StepGraphs(record))
    single_steps(model, target)
    before, layer = list(made), model.get_submodule("layers.0.retention.out_proj")
    assert replayed
    replayed.clear()
    if kind == "forward":
        usual = layer.forward
        vars(layer)["forward"] = lambda x: -usual(x)
    else:
        nn.utils.parametrize.register_parametrization(layer, "weight", Negative())
    model.eval()
    assert_close(single_steps(model, target), model(target)[0], "float64")
    assert not any(step in before for step in replayed)


@torch.no_grad()
def test_what_cannot_be_recorded_is_computed_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    def fails(step: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
        step()
        raise torch.OutOfMemoryError("no room")

    model, target = decoder(), tokens(3, 9)
    full, _ = model(target)
    model.record_steps(StepGraphs(fails))
    assert_close(single_steps(model, target), full, "float32")
    assert caplog.text.count("cannot be recorded") == 1
