"""Steps of decoding as CUDA graphs equal the full forward, and generate what usual steps generate."""

from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.core.decoding import mask_of, single_steps
from tests.core.models import SIZES, VARIANTS, decoder, encoder_decoder, tokens
from tests.helpers import TOLERANCES, assert_close
from tests.plugin.built import tiny, words
from tests.plugin.generating import texts
from torchscale_fairseq.core.architectures.step_graphs import StepGraphs
from torchscale_fairseq.core.layers import static_state
from torchscale_fairseq.tools.convert.bitnet_packing import pack_all

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FAIRSEQ = ["mt_deepnorm_small", "mt_magneto_small", "mt_retnet_small", "gpt_deepnorm_small", "gpt_xpos_small"]
FAIRSEQ += ["retnet_small", "bitnet_small", "mt_swiglu_small"]


@pytest.fixture(autouse=True)
def precise_products_and_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    monkeypatch.setattr(static_state, "LEAST_TOKENS", 16)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "compatible" not in name])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_steps_match_full_forward(variant: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision with no greater error than usual steps have, or half as much again."""
    monkeypatch.setitem(SIZES, "embed_dim", 128)
    model, target = decoder(**VARIANTS[variant]).cuda(), tokens(3, 41).cuda()
    full = model(target)[0].double()
    usual = single_steps(model.to(dtype), target).double()
    graphs = StepGraphs()
    model.record_steps(graphs)
    recorded = single_steps(model, target).double()
    assert graphs.recorded >= 2
    allowed = TOLERANCES["float32"].rtol if dtype == torch.float32 else 1.5 * (usual - full).norm() / full.norm()
    assert (recorded - full).norm() / full.norm() <= allowed


@torch.no_grad()
def test_steps_of_packed_weights_are_recorded() -> None:
    """Inputs that lie near the border of two of BitNet's whole numbers may be rounded to either."""
    weights, _ = pack_all(decoder(bitnet="b1.58").state_dict(), "b1.58")
    model = decoder(bitnet="b1.58", bitnet_packed=True)
    model.load_state_dict(weights)
    target, graphs = tokens(2, 9).cuda(), StepGraphs()
    expected = model.cuda()(target)[0]
    model.record_steps(graphs)
    assert_close(single_steps(model, target), expected, "bfloat16")
    assert graphs.recorded >= 1


@torch.no_grad()
def test_beams_share_their_sentence() -> None:
    model = encoder_decoder().cuda()
    encoder_out = model.encoder(tokens(3, 9).cuda(), mask_of([9, 4, 6], 9, "left").cuda())
    graphs = StepGraphs()
    model.decoder.record_steps(graphs)
    state: dict[Any, Any] = {}
    target = tokens(6, 1, seed=2).cuda()
    sentence = torch.arange(3, device="cuda").repeat_interleave(2)
    for step, move in enumerate([None, [1, 0, 2, 2, 5, 4], [0, 1, 4, 5], [1, 1, 2, 3], [1, 1, 2, 3], [0, 2, 1, 3]]):
        if move is not None:
            order = torch.tensor(move, device="cuda")
            model.decoder.reorder_incremental_state(state, order)
            target, sentence = target[order], sentence[order]
            target = torch.cat((target, tokens(len(order), 1, seed=10 + step).cuda()), 1)
        logits, _ = model.decoder(target, encoder_out=encoder_out, incremental_state=state)
        own = {name: encoder_out[name][sentence] for name in ("encoder_out", "encoder_padding_mask")}
        full, _ = model.decoder(target, encoder_out=own)
        assert_close(logits[:, -1], full[:, -1], "float32", f"step {step}")
    assert graphs.recorded >= 1


@pytest.mark.parametrize("given", [{}, {"sampling": True, "beam": 3}, {"beam": 1}], ids=str)
@pytest.mark.parametrize("arch", FAIRSEQ)
def test_generator_finds_the_same_texts(arch: str, given: dict[str, Any]) -> None:
    """Over two batches, the second of which uses the graphs of the first."""
    dictionary = words()
    usual, recorded = (tiny(arch, dictionary).cuda() for _ in range(2))
    recorded.make_generation_fast_()
    for seed in (0, 1):
        expected, found = (texts(model, seed=seed, max_len_b=24, **given) for model in (usual.eval(), recorded))
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-4)
    assert recorded.decoder._step_graphs.recorded >= 1
