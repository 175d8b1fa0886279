"""Single operations equal the official ones."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import TOLERANCES, assert_close
from tests.parity.initial_values import Sizes, check_rows, depths_of, groups, initial_values, sides, sizes_of
from tests.parity.vectors import Case, cases
from torchscale_fairseq.core.initialization import deepnorm_scaling
from torchscale_fairseq.core.layers.feed_forward import FeedForwardNetwork, GatedLinearUnit
from torchscale_fairseq.core.layers.norm import build_norm
from torchscale_fairseq.core.layers.relative_position import RelativePositionBias, relative_position_bucket
from torchscale_fairseq.core.ops.xpos import rotate, xpos_tables


def loaded(module: nn.Module, case: Case, prefix: str) -> nn.Module:
    module.load_state_dict(case.group(f"param/{prefix}."))
    return module


HALVES = {"half": (torch.float16, "parity_half"), "bf16": (torch.bfloat16, "parity_bfloat16")}


def feed_forward(case: Case, name: str) -> nn.Module:
    """GLU or feed-forward network of a case, as its name and parameters say."""
    kind, activation, *_ = name.split("_")
    inner, width = case[f"param/{name}.fc1.weight"].shape
    if kind == "glu":
        module: nn.Module = GatedLinearUnit(width, inner, activation_fn=activation)
    else:
        inner_norm = (
            build_norm("layernorm", inner, 1e-5) if f"param/{name}.ffn_layernorm.weight" in case.tensors else None
        )
        module = FeedForwardNetwork(width, inner, activation_fn=activation, inner_norm=inner_norm)
    return loaded(module, case, name)


@pytest.mark.parametrize("case", cases("comp_ffn"), ids=lambda c: c.name)
@torch.no_grad()
def test_feed_forward(case: Case) -> None:
    x = case["in/x"]
    for name, expected in case.group("out/").items():
        kind, _, precision = name.partition("_")
        if kind == "rms":
            norm = loaded(build_norm("rmsnorm", x.size(-1), 1e-6), case, "rms")
            dtype, tolerance = HALVES.get(precision, (torch.float32, "parity_operator"))
            assert_close(norm.to(dtype)(x.to(dtype)).float(), expected.float(), tolerance, name)
        else:
            assert_close(feed_forward(case, name)(x), expected, "parity_operator", name)


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


def bias_settings(variant: str) -> dict[str, Any]:
    """Of a name such as b32_d128_bi: buckets, largest distance, direction."""
    buckets, farthest, direction = variant.split("_")
    return {
        "bidirectional": direction == "bi",
        "num_buckets": int(buckets[1:]),
        "max_distance": int(farthest[1:]),
    }


@pytest.mark.parametrize("case", cases("pos_relbias"), ids=lambda c: c.name)
@torch.no_grad()
def test_relative_position_bias(case: Case) -> None:
    """``bias_q1_k9_step8`` is the bias of one query, at position 8, to nine keys."""
    for name, distances in case.group("in/").items():
        variant = name.removesuffix(".relative_position")
        settings = bias_settings(variant)
        assert torch.equal(relative_position_bucket(distances, **settings), case[f"out/{variant}.bucket"]), variant
        heads = case[f"param/{variant}.relative_attention_bias.weight"].size(1)
        module = loaded(RelativePositionBias(heads, **settings), case, variant)
        biases = case.group(f"out/{variant}.bias_")
        assert biases
        for suffix, expected in biases.items():
            queries, keys, first = (int(x or 0) for x in re.fullmatch(r"q(\d+)_k(\d+)(?:_step(\d+))?", suffix).groups())
            bias = module(torch.arange(first, first + queries)[None], torch.arange(keys)[None])[0]
            batch = len(expected) // heads  # the official one repeats it
            assert_close(bias.repeat(batch, 1, 1), expected, "parity_exact", f"{variant}.{suffix}")


@pytest.mark.parametrize("depths", initial_values()["alpha"])
def test_deepnorm_alpha(depths: str) -> None:
    n, m = map(int, depths.split("-"))
    expected = initial_values()["alpha"][depths]
    encoder, decoder = deepnorm_scaling(encoder_layers=n, decoder_layers=m)
    assert encoder.alpha == pytest.approx(expected["encoder_decoder"]["encoder_alpha"])
    assert decoder.alpha == pytest.approx(expected["encoder_decoder"]["decoder_alpha"])
    assert deepnorm_scaling(encoder_layers=n, decoder_layers=0)[0].alpha == pytest.approx(
        expected["encoder_only_alpha"]
    )
    assert deepnorm_scaling(encoder_layers=0, decoder_layers=m)[1].alpha == pytest.approx(
        expected["decoder_only_alpha"]
    )


@pytest.mark.parametrize("group", [g for g in initial_values()["init_multiplier_exact"] if not g.startswith("retnet")])
def test_exact_gains(group: str) -> None:
    """The same random numbers with and without the scheme: their ratio is the gain, whatever the width."""
    architecture, layers, mode = group.split("-")
    architecture = {"ed": "encoder_decoder"}.get(architecture, architecture)
    depths, sizes = depths_of(layers), Sizes(embed=8, ffn=8, value=8)
    plain = sides(architecture, depths, sizes, subln=False)
    scaled = sides(architecture, depths, sizes, subln=mode == "subln", deepnorm=mode == "deepnorm")
    for pattern, expected in initial_values()["init_multiplier_exact"][group].items():
        side, _, name = pattern.rpartition("layers.*.")
        side = side.rstrip(".") or architecture
        first = plain[side].get_parameter(f"layers.0.{name}")
        gain = scaled[side].get_parameter(f"layers.0.{name}") / first
        torch.testing.assert_close(gain, torch.full_like(gain, expected), rtol=1e-5, atol=0, msg=pattern)


TRANSFORMERS = ("encoder", "decoder", "encoder_decoder")


@pytest.mark.parametrize("group", groups(*TRANSFORMERS))
def test_initial_values(group: str) -> None:
    rows = groups(*TRANSFORMERS)[group]
    options = {name: name in rows[0]["mode"] for name in ("deepnorm", "subln", "bert_init")}
    models = sides(rows[0]["arch"], depths_of(rows[0]["layers"]), sizes_of(rows), **options)
    check_rows(rows, models, bounded=not options["bert_init"])


def test_tolerances_have_reasons() -> None:
    assert all(t.reason for t in TOLERANCES.values())
