"""Single operations equal the official ones."""

import json
import re

import pytest
import torch
from torch import nn

from tests.helpers import TOLERANCES, assert_close, parity_dir
from tests.parity.vectors import Case, cases
from torchscale_fairseq import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.encoder import Encoder
from torchscale_fairseq.core.architectures.encoder_decoder import EncoderDecoder
from torchscale_fairseq.core.initialization import deepnorm_scaling
from torchscale_fairseq.core.layers.feed_forward import FeedForwardNetwork, GatedLinearUnit
from torchscale_fairseq.core.layers.norm import build_norm
from torchscale_fairseq.core.layers.relative_position import RelativePositionBias, relative_position_bucket
from torchscale_fairseq.core.ops.xpos import rotate, xpos_tables


def loaded(module: nn.Module, case: Case, prefix: str) -> nn.Module:
    module.load_state_dict(case.group(f"param/{prefix}."))
    return module


@pytest.mark.parametrize("case", cases("comp_ffn"), ids=lambda c: c.name)
def test_feed_forward(case: Case) -> None:
    x = case["in/x"]
    for name, expected in case.group("out/").items():
        kind, *rest = name.split("_")
        if kind == "rms":
            norm = loaded(build_norm("rmsnorm", 24, 1e-6), case, "rms")
            dtype, tolerance = {
                "half": (torch.float16, "parity_half"),
                "bf16": (torch.bfloat16, "parity_bfloat16"),
            }.get(rest[0] if rest else "", (torch.float32, "parity_operator"))
            assert_close(norm.to(dtype)(x.to(dtype)).float(), expected.float(), tolerance, name)
            continue
        inner = case[f"param/{name}.fc1.weight"].size(0)
        activation = rest[0]
        if kind == "glu":
            module: nn.Module = GatedLinearUnit(24, inner, activation_fn=activation)
        else:
            inner_norm = build_norm("layernorm", inner, 1e-5) if rest[1] == "subln" else None
            module = FeedForwardNetwork(24, inner, activation_fn=activation, inner_norm=inner_norm)
        assert_close(loaded(module, case, name)(x), expected, "parity_operator", name)


@pytest.mark.parametrize("case", cases("pos_xpos"), ids=lambda c: c.name)
def test_xpos(case: Case) -> None:
    for name, x in case.group("in/").items():
        variant = name.removesuffix(".x")
        head_dim, base, length, offset = (int(re.sub("[a-z]+", "", part)) for part in variant.split("_"))
        total = length + offset
        first = -(total // 2) - total % 2  # the official code centres like this
        positions = torch.arange(offset, total)[None]
        tables = xpos_tables(
            positions, head_dim, decay=True, scale_base=base, centre=-first, span=total, dtype=torch.float32
        )
        for direction, table in (("up", tables.query), ("down", tables.key)):
            actual = rotate(x.unsqueeze(2), table).squeeze(2)
            assert_close(actual, case[f"out/{variant}.{direction}"], "parity_operator", f"{variant}.{direction}")


@pytest.mark.parametrize("case", cases("pos_relbias"), ids=lambda c: c.name)
def test_relative_position_bias(case: Case) -> None:
    for name, distances in case.group("in/").items():
        variant = name.removesuffix(".relative_position")
        buckets, farthest, direction = variant.split("_")
        settings = {
            "bidirectional": direction == "bi",
            "num_buckets": int(buckets[1:]),
            "max_distance": int(farthest[1:]),
        }
        assert torch.equal(relative_position_bucket(distances, **settings), case[f"out/{variant}.bucket"]), variant
        heads = case[f"param/{variant}.relative_attention_bias.weight"].size(1)
        module = loaded(RelativePositionBias(heads, **settings), case, variant)
        keys = torch.arange(9)[None]
        for queries, suffix in ((torch.arange(7), "bias_q7_k9"), (torch.tensor([8]), "bias_q1_k9_step8")):
            bias = module(queries[None], keys)[0].repeat(2, 1, 1)  # the official one repeats it for a batch of 2
            assert_close(bias, case[f"out/{variant}.{suffix}"], "parity_exact", f"{variant}.{suffix}")


INIT = json.loads((parity_dir() / "init_stats.json").read_text())


@pytest.mark.parametrize("depths", INIT["alpha"])
def test_deepnorm_alpha(depths: str) -> None:
    n, m = map(int, depths.split("-"))
    expected = INIT["alpha"][depths]
    encoder, decoder = deepnorm_scaling(encoder_layers=n, decoder_layers=m)
    assert encoder.alpha == pytest.approx(expected["encoder_decoder"]["encoder_alpha"])
    assert decoder.alpha == pytest.approx(expected["encoder_decoder"]["decoder_alpha"])
    assert deepnorm_scaling(encoder_layers=n, decoder_layers=0)[0].alpha == pytest.approx(
        expected["encoder_only_alpha"]
    )
    assert deepnorm_scaling(encoder_layers=0, decoder_layers=m)[1].alpha == pytest.approx(
        expected["decoder_only_alpha"]
    )


def official_sides(depths: list[int], architecture: str, **options: object) -> dict[str, nn.Module]:
    """The sides of a model of the size that init_stats.json was measured on."""
    encoder, decoder = (
        {
            f"{side}_embed_dim": 256,
            f"{side}_ffn_embed_dim": 512,
            f"{side}_attention_heads": 4,
            f"{side}_layers": layers,
        }
        for side, layers in (("encoder", depths[0]), ("decoder", depths[-1]))
    )
    options = {"torchscale_compatible": True, **options}
    torch.manual_seed(1)
    if architecture == "encoder":
        return {"encoder": Encoder(EncoderConfig(**encoder, **options))}
    if architecture == "decoder":
        return {"decoder": Decoder(DecoderConfig(**decoder, **options))}
    model = EncoderDecoder(EncoderDecoderConfig(**encoder, **decoder, **options))
    return {"encoder": model.encoder, "decoder": model.decoder}


@pytest.mark.parametrize("group", [g for g in INIT["init_multiplier_exact"] if not g.startswith("retnet")])
def test_exact_gains(group: str) -> None:
    """The same random numbers with and without the scheme: their ratio is the gain."""
    architecture, layers, mode = group.split("-")
    architecture = {"ed": "encoder_decoder"}.get(architecture, architecture)
    plain = official_sides([int(layers)], architecture, subln=False)
    scaled = official_sides([int(layers)], architecture, subln=mode == "subln", deepnorm=mode == "deepnorm")
    for pattern, expected in INIT["init_multiplier_exact"][group].items():
        side, _, name = pattern.rpartition("layers.*.")
        side = side.rstrip(".") or architecture
        first = plain[side].get_parameter(f"layers.0.{name}")
        gain = scaled[side].get_parameter(f"layers.0.{name}") / first
        torch.testing.assert_close(gain, torch.full_like(gain, expected), rtol=1e-5, atol=0, msg=pattern)


def rows_of_init_stats() -> dict[str, list[dict]]:
    """Rows of the transformers, by architecture, depth and mode."""
    groups: dict[str, list[dict]] = {}
    for row in INIT["rows"]:
        if row["arch"] in ("encoder", "decoder", "encoder_decoder"):
            groups.setdefault(f"{row['arch']}-{row['layers']}-{row['mode']}", []).append(row)
    return groups


@pytest.mark.parametrize("group", rows_of_init_stats())
def test_initial_values(group: str) -> None:
    """Spread of the initial weights and biases, which bounds the gains: std to 3 %, bounds to 1 %."""
    rows = rows_of_init_stats()[group]
    mode = rows[0]["mode"]
    options = {
        "deepnorm": "deepnorm" in mode,
        "subln": "subln" in mode,
        "bert_init": "bert" in mode,
    }
    depths = [int(n) for n in str(rows[0]["layers"]).split("-")]
    sides = official_sides(depths, rows[0]["arch"], **options)
    for row in rows:
        block = {"self": "self_attn", "cross": "encoder_attn", "ffn": "ffn"}[row["block"]]
        values = torch.cat(
            [
                p.detach().flatten()
                for name, p in sides[row["side"]].layers.named_parameters()
                if f"{block}.{row['param']}.{row['tensor']}" in name
            ]
        )
        what = f"{row['side']} {block}.{row['param']}.{row['tensor']}"
        assert values.numel() == row["elements"], what
        assert values.std().item() == pytest.approx(row["std"], rel=0.03, abs=1e-12), what
        if not options["bert_init"]:
            assert values.abs().max().item() == pytest.approx(row["abs_max"], rel=0.01, abs=1e-12), what


def test_tolerances_have_reasons() -> None:
    assert all(t.reason for t in TOLERANCES.values())
