"""Residuals, multiway, stochastic depth, recomputation, positions, xPos."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.core.models import SIZES, VARIANTS, decoder, encoder, encoder_decoder, tokens
from tests.helpers import assert_close, kept_for_backward
from torchscale_fairseq import Encoder, EncoderConfig
from torchscale_fairseq.core.layers.embedding import SinusoidalPositionalEmbedding
from torchscale_fairseq.core.layers.feed_forward import FeedForwardNetwork
from torchscale_fairseq.core.layers.residual import Residual
from torchscale_fairseq.core.ops.drop_path import drop_path
from torchscale_fairseq.core.ops.positions import (
    absolute_positions,
    has_padding_before_tokens,
    has_padding_inside,
    relative_positions,
)
from torchscale_fairseq.core.ops.xpos import decay_factors, rotate, xpos_tables


def test_residual_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0]])
    norm, sublayer = (lambda y: y / 2), (lambda y: y + 1)
    pre = Residual(alpha=1.0, pre_norm=True, dropout=0.0, drop_path_rate=0.0)
    post = Residual(alpha=3.0, pre_norm=False, dropout=0.0, drop_path_rate=0.0)
    assert pre(x, norm, sublayer).tolist() == [[2.5, 5.5]]  # x + (x / 2 + 1)
    assert post(x, norm, sublayer).tolist() == [[2.5, 6.5]]  # (3 x + x + 1) / 2


def test_drop_path_keeps_rows_whole_and_the_mean() -> None:
    torch.manual_seed(0)
    out = drop_path(torch.ones(4000, 3), 0.25)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (out.amax(1) == out.amin(1)).all()
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)


def test_drop_path_grows_with_depth_and_rests_in_eval() -> None:
    model = encoder(drop_path_rate=0.5)
    residuals: list[Any] = [layer.residual for layer in model.layers]
    assert [residual.drop_path_rate for residual in residuals] == [0.0, 0.25, 0.5]
    batch = tokens(8, 5)
    assert torch.equal(model(batch)["encoder_out"], model(batch)["encoder_out"])
    model.train()
    assert not torch.equal(model(batch)["encoder_out"], model(batch)["encoder_out"])


@pytest.mark.parametrize("compatible", [False, True])
def test_multiway(compatible: bool) -> None:
    """The paper doubles feed-forward networks alone, TorchScale everything."""
    sizes: dict[str, Any] = {f"encoder_{k}": v for k, v in SIZES.items()}
    model = Encoder(EncoderConfig(**sizes, multiway=True, torchscale_compatible=compatible)).eval()
    doubled = {n.split(".")[2] for n, _ in model.named_parameters() if ".A." in n and n.startswith("layers")}
    everything = {"self_attn", "self_attn_layer_norm", "ffn", "final_layer_norm"}
    assert doubled == (everything if compatible else {"ffn"})
    x = torch.randn(2, 6, SIZES["embed_dim"])

    def run(split: int | None) -> torch.Tensor:
        return model(None, token_embeddings=x, multiway_split_position=split)["encoder_out"]

    assert torch.equal(run(None), run(-1)), "all tokens are of modality A unless told otherwise"
    assert_close(run(6), run(-1), "float32")
    assert not torch.allclose(run(0), run(-1))
    assert not torch.allclose(run(3), run(-1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputation_changes_nothing(variant: str) -> None:
    results = []
    for recompute in (False, True):
        model = encoder_decoder(**VARIANTS[variant], checkpoint_activations=recompute).train()
        logits, _ = model(tokens(2, 6), tokens(2, 5))
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, recomputed in zip(*results, strict=True):
        assert_close(recomputed, plain, "float32")


def test_feed_forward_in_chunks_changes_nothing() -> None:
    """In value and gradient, dropout included, alone and in layers that are recomputed; it keeps less."""
    results, kept = [], []
    for options in ({}, {"ffn_chunk_size": 3}, {"ffn_chunk_size": 3, "checkpoint_activations": True}):
        model = decoder(**options, gated_ffn=True).train()
        with kept_for_backward() as sizes:
            logits, _ = model(tokens(2, 7))
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
        kept.append(sum(sizes))
    for other in results[1:]:
        for whole, chunked in zip(results[0], other, strict=True):
            assert_close(chunked, whole, "float32")
    assert kept[0] > kept[1] > kept[2]


def test_dropout_of_a_feed_forward_network_in_chunks() -> None:
    """What is dropped in the forward pass is dropped when it is computed again."""

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return network(x)

    network = FeedForwardNetwork(4, 8, activation_dropout=0.5, chunk_size=2).double()
    torch.autograd.gradcheck(seeded, torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True))


def test_padding_changes_no_gradient() -> None:
    """A right-padded batch gives the sum of its rows' gradients."""
    model, lengths = decoder(), [7, 4]
    target = tokens(2, 7)
    mask = torch.arange(7) >= torch.tensor(lengths)[:, None]
    model(target, mask)[0][~mask].square().sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row, length in enumerate(lengths):
        model(target[row : row + 1, :length])[0].square().sum().backward()
    for (name, p), gradient in zip(model.named_parameters(), together, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_positions_by_hand() -> None:
    left = torch.tensor([[True, True, False, False], [False] * 4])
    inside = torch.tensor([[True, False, True, False]])
    right = torch.tensor([[False, False, True, True]])
    assert absolute_positions(left).tolist() == [[1, 1, 2, 3], [2, 3, 4, 5]]
    assert absolute_positions(inside).tolist() == [[1, 2, 1, 3]]
    assert relative_positions(left)[0, 2:].tolist() == [2, 3]
    assert relative_positions(inside)[0, [1, 3]].tolist() == [1, 2]
    assert has_padding_before_tokens(left) and has_padding_before_tokens(inside)
    assert not has_padding_before_tokens(right)
    assert has_padding_inside(inside) and not has_padding_inside(left) and not has_padding_inside(right)


def test_sinusoidal_positions_by_hand() -> None:
    module = SinusoidalPositionalEmbedding(4, 5)
    row = module(torch.tensor([[3]]))[0, 0]
    expected = [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4), 0.0]
    assert row.tolist() == pytest.approx(expected)
    assert not module(torch.tensor([1])).any(), "the row of padding"
    assert not module.state_dict(), "computed, not stored"


def tables(positions: torch.Tensor, *, decay: bool = True, centre: int = 0, dtype: torch.dtype = torch.float64):
    return xpos_tables(positions, 8, decay=decay, scale_base=4, centre=centre, span=20, dtype=dtype)


def test_xpos_scores_depend_on_distance_alone() -> None:
    """Equation 12 by hand: score = sum over pairs of zeta^((n-m)/B) |q||k| cos(...), for any centre and shift."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    n, m = 11, 4
    zeta = decay_factors(8, torch.float64, q.device)
    theta = 10000 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    pair_q, pair_k = torch.view_as_complex(q.view(4, 2)), torch.view_as_complex(k.view(4, 2))
    turned = pair_q * pair_k.conj() * torch.polar(torch.ones(4, dtype=torch.float64), (n - m) * theta)
    expected = (zeta ** ((n - m) / 4) * turned.real).sum()
    for shift in (0, 3, 500):
        for centre in (0, 7):
            at_n = tables(torch.tensor([[n + shift]]), centre=centre + shift).query
            at_m = tables(torch.tensor([[m + shift]]), centre=centre + shift).key
            score = (rotate(q.view(1, 1, 1, 8), at_n) * rotate(k.view(1, 1, 1, 8), at_m)).sum()
            assert_close(score, expected, "float64", f"shift {shift}, centre {centre}")


def test_xpos_without_decay_is_a_rotation() -> None:
    """In bidirectional attention, where the decay is undefined for later keys, lengths are kept."""
    x = torch.randn(2, 9, 3, 8)
    t = tables(torch.arange(9)[None], decay=False, dtype=torch.float32)
    assert_close(rotate(x, t.query).norm(dim=-1), x.norm(dim=-1), "float32")
    model = encoder(xpos_rel_pos=True)
    batch = tokens(1, 6)
    wide = encoder(xpos_rel_pos=True, xpos_scale_base=1)
    assert_close(model(batch)["encoder_out"], wide(batch)["encoder_out"], "float32", "scale base has no effect")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_xpos_tables_stay_in_float32(dtype: torch.dtype) -> None:
    """At position 4000 a bfloat16 angle is off by up to 8 radians."""
    positions = torch.arange(4000)[None]
    low = xpos_tables(positions, 8, decay=False, scale_base=512, centre=0, span=4000, dtype=dtype)
    exact = xpos_tables(positions, 8, decay=False, scale_base=512, centre=0, span=4000, dtype=torch.float64)
    assert low.query[0].dtype == torch.float32
    torch.testing.assert_close(low.query[0].double(), exact.query[0], atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_whole_models_in_other_dtypes(dtype: torch.dtype) -> None:
    for variant in ("xpos", "relative_bias", "deepnorm", "subln"):
        exact, model = decoder(**VARIANTS[variant]).double(), decoder(**VARIANTS[variant]).to(dtype)
        logits, expected = model(tokens(2, 30))[0], exact(tokens(2, 30))[0]
        assert logits.dtype == dtype and logits.isfinite().all()
        error = ((logits.double() - expected).norm() / expected.norm()).item()
        bound = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float64: 1e-12}[dtype]
        assert error < bound, f"{variant}: relative RMS error {error}"


@torch.no_grad()
def test_long_xpos_in_float16_stays_finite() -> None:
    model = decoder(xpos_rel_pos=True).half()
    logits, _ = model(tokens(1, 10000))
    assert logits.isfinite().all()


def test_xpos_scale_base_too_small() -> None:
    with pytest.raises(ValueError, match=r"xpos_scale_base \(1\) is too small for 100 tokens; use at least 2"):
        decoder(xpos_rel_pos=True, xpos_scale_base=1)(tokens(1, 100))


def test_encoder_padding_mask_of_wrong_size() -> None:
    with pytest.raises(ValueError, match="covers 4 tokens, but there are 6"):
        encoder()(tokens(1, 6), torch.tensor([[False, False, True, True]]))


def test_cross_attention_between_different_widths() -> None:
    from torchscale_fairseq import EncoderDecoder, EncoderDecoderConfig

    config = EncoderDecoderConfig(
        vocab_size=40,
        **{f"encoder_{k}": v for k, v in SIZES.items()},
        **{**{f"decoder_{k}": v for k, v in SIZES.items()}, "decoder_embed_dim": 16},
    )
    assert EncoderDecoder(config)(tokens(2, 5), tokens(2, 3))[0].shape == (2, 3, 40)


def test_modules_print() -> None:
    text = repr(nn.ModuleList([encoder(rel_pos_buckets=8, max_rel_pos=16), decoder(deepnorm=True)]))
    assert "post-norm, alpha=1.565" in text and "bidirectional, max_distance=16" in text and "backend=sdpa" in text


@pytest.mark.parametrize("compatible", [False, True])
def test_relative_bias_of_decoders(compatible: bool) -> None:
    """T5: causal buckets and no bias in cross-attention; TorchScale: bidirectional ones and a bias."""
    variant = "compatible_bias" if compatible else "relative_bias"
    model: Any = encoder_decoder(**VARIANTS[variant])
    assert model.encoder.relative_position.bidirectional
    assert model.decoder.self_attn_relative_position.bidirectional is compatible
    assert (model.decoder.cross_attn_relative_position is not None) is compatible
