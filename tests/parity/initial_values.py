"""``init_stats.json``: initial values of the official models, measured over all layers of a kind."""

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from tests.helpers import parity_dir
from torchscale_fairseq import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    RetNetConfig,
    RetNetDecoder,
)


@cache
def initial_values() -> dict[str, Any]:
    """The file, or an empty one where a set of vectors has none."""
    path = parity_dir() / "init_stats.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "alpha": {}, "init_multiplier_exact": {}}


@dataclass(frozen=True)
class Sizes:
    """Of the models that were measured; the numbers of elements in the rows give them."""

    embed: int
    ffn: int
    value: int


def depths_of(layers: Any) -> tuple[int, int]:
    """Layers of encoder and decoder, of "12-6" or 12."""
    depths = [int(n) for n in str(layers).split("-")]
    return depths[0], depths[-1]


def sizes_of(rows: list[dict[str, Any]]) -> Sizes:
    """Widths of the side that the first row is of."""
    side = rows[0]["side"]
    layers = depths_of(rows[0]["layers"])[0 if side == "encoder" else 1]
    elements = {
        row["param"]: row["elements"] // layers
        for row in rows
        if row["side"] == side and row["tensor"] == "weight" and row["block"] != "cross"
    }
    embed = math.isqrt(elements["q_proj"])
    return Sizes(embed, elements["fc1"] // embed, elements["v_proj"] // embed)


def groups(*architectures: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of these architectures, by architecture, depth and mode."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in initial_values()["rows"]:
        if row["arch"] in architectures:
            found.setdefault(f"{row['arch']}-{row['layers']}-{row['mode']}", []).append(row)
    return found


def sides(architecture: str, depths: tuple[int, int], sizes: Sizes, **options: Any) -> dict[str, Any]:
    """The sides of a model with the official initial values. The number of heads does not matter to them."""
    torch.manual_seed(1)
    options.setdefault("torchscale_compatible", True)
    if architecture == "retnet":
        widths = {"embed_dim": sizes.embed, "value_embed_dim": sizes.value, "ffn_embed_dim": sizes.ffn}
        config = RetNetConfig(**_named("decoder", depths[1], **widths, retention_heads=2), **options)
        return {"decoder": RetNetDecoder(config)}
    widths = {"embed_dim": sizes.embed, "ffn_embed_dim": sizes.ffn, "attention_heads": 2}
    encoder, decoder = _named("encoder", depths[0], **widths), _named("decoder", depths[1], **widths)
    if architecture == "encoder":
        return {"encoder": Encoder(EncoderConfig(**encoder, **options))}
    if architecture == "decoder":
        return {"decoder": Decoder(DecoderConfig(**decoder, **options))}
    model = EncoderDecoder(EncoderDecoderConfig(**encoder, **decoder, **options))
    return {"encoder": model.encoder, "decoder": model.decoder}


def _named(side: str, layers: int, **widths: int) -> dict[str, Any]:
    return {f"{side}_{name}": value for name, value in {"layers": layers, **widths}.items()}


def check_rows(rows: list[dict[str, Any]], models: dict[str, Any], *, bounded: bool = True) -> None:
    """Compare the spread of the initial values: std to 3 %, bounds to 1 %, which bounds the gains."""
    for row in rows:
        self_attention = "retention" if row["arch"] == "retnet" else "self_attn"
        block = {"self": self_attention, "cross": "encoder_attn", "ffn": "ffn"}[row["block"]]
        parameters = models[row["side"]].layers.named_parameters()
        named = f"{block}.{row['param']}.{row['tensor']}"
        values = torch.cat([p.detach().flatten() for name, p in parameters if named in name])
        what = f"{row['side']} {named}"
        assert values.numel() == row["elements"], what
        assert values.std().item() == pytest.approx(row["std"], rel=0.03, abs=1e-12), what
        if bounded:
            assert values.abs().max().item() == pytest.approx(row["abs_max"], rel=0.01, abs=1e-12), what
