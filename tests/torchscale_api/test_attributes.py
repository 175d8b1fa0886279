"""Every class of TorchScale's list (api.txt), built and called in the official way, has the attributes of the list."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from torchscale_fairseq.torchscale_api.architecture import config, retnet
from torchscale_fairseq.torchscale_api.component.embedding import PositionalEmbedding, TextEmbedding, VisionEmbedding
from torchscale_fairseq.torchscale_api.component.feedforward_network import make_experts
from torchscale_fairseq.torchscale_api.component.xmoe.routing import Top2Gate

ENCODER = {
    f"encoder_{k}": v for k, v in (("embed_dim", 8), ("attention_heads", 2), ("ffn_embed_dim", 16), ("layers", 2))
}
DECODER = {name.replace("encoder", "decoder"): value for name, value in ENCODER.items()}
SEGMENTS = {"segment_length": "[2,4]", "dilated_ratio": "[1,2]"}
EXPERTS = SimpleNamespace(moe_expert_count=2, activation_fn="gelu", dropout=0.0, activation_dropout=0.0,
                          layernorm_eps=1e-5, subln=True)  # fmt: skip
E = config.EncoderConfig(**ENCODER, vocab_size=20, rel_pos_buckets=8, max_rel_pos=16, multiway=True)
D = config.DecoderConfig(**DECODER, vocab_size=20, rel_pos_buckets=8, max_rel_pos=16, layernorm_embedding=True)
R = config.RetNetConfig(
    decoder_embed_dim=8, decoder_value_embed_dim=16, decoder_retention_heads=2, decoder_ffn_embed_dim=16,
    decoder_layers=2, recurrent_chunk_size=2, vocab_size=20, layernorm_embedding=True,
)  # fmt: skip
LONG_E, LONG_D = config.EncoderConfig(**ENCODER, **SEGMENTS), config.DecoderConfig(**DECODER, **SEGMENTS, vocab_size=20)
PAIRS = config.EncoderConfig(**ENCODER, vocab_size=20, multiway=True, img_size=16, patch_size=8)
BOTH = config.EncoderDecoderConfig(**ENCODER, **DECODER, vocab_size=20)
X, IDS, IMAGE = torch.randn(2, 5, 8), torch.randint(0, 20, (2, 5)), torch.randn(2, 3, 16, 16)
NO_POSITIONS: list[Any] = [TextEmbedding(20, 8), PositionalEmbedding(20, 8)]
STEPS = retnet.RetNetRelPos(R)(5)
IMAGES: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 8}

BUILT: dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...], dict[str, Any]]] = {
    # class: arguments of its constructor, keywords, arguments of a call, keywords
    "architecture.decoder.DecoderLayer": ((BOTH, 1), {"is_encoder_decoder": True}, (X, X), {}),
    "architecture.decoder.Decoder": ((D, *NO_POSITIONS), {}, (IDS,), {"return_all_hiddens": True}),
    "architecture.encoder.EncoderLayer": ((E, 1), {}, (X, None), {}),
    "architecture.encoder.Encoder": ((E, *NO_POSITIONS), {}, (IDS,), {"return_all_hiddens": True}),
    "architecture.encoder_decoder.EncoderDecoder": ((BOTH, *NO_POSITIONS, *NO_POSITIONS), {}, (IDS, IDS), {}),
    "architecture.retnet.RetNetRelPos": ((R,), {}, (5,), {"chunkwise_recurrent": True}),
    "architecture.retnet.DecoderLayer": ((R, 1), {}, (X,), {"retention_rel_pos": STEPS}),
    "architecture.retnet.RetNetDecoder": ((R, NO_POSITIONS[0]), {}, (IDS,), {"features_only": True}),
    "component.dilated_attention.DilatedAttention": ((LONG_E, 8, 2), {"self_attention": True}, (X, X, X), {}),
    "component.droppath.DropPath": ((0.5,), {}, (X,), {}),
    "component.embedding.VisionLanguageEmbedding": (
        (NO_POSITIONS[0], VisionEmbedding(**IMAGES)), {}, (IDS, IMAGE), {},
    ),
    "component.embedding.VisionEmbedding": (
        (), {**IMAGES, "contain_mask_token": True, "prepend_cls_token": True}, (IMAGE, torch.ones(2, 4).bool()), {},
    ),
    "component.embedding.TextEmbedding": ((20, 8), {}, (IDS,), {}),
    "component.embedding.PositionalEmbedding": ((20, 8), {}, (IDS,), {"positions": IDS}),
    "component.feedforward_network.FeedForwardNetwork": ((8, 16, "gelu", 0.0, 0.0, 1e-5, True), {}, (X,), {}),
    "component.gate_linear_unit.GLU": ((8, 16, "swish", 0.0, 0.0), {}, (X,), {}),
    "component.multihead_attention.MultiheadAttention": ((D, 8, 2), {"self_attention": True}, (X, X, X), {}),
    "component.multiscale_retention.MultiScaleRetention": ((R, 8, 16, 2), {}, (X, STEPS), {}),
    "component.multiway_network.MultiwayNetwork": ((nn.Linear(8, 8),), {}, (X,), {}),
    "component.multiway_network.MutliwayEmbedding": (
        (), {"modules": [nn.Linear(8, 8), nn.Linear(8, 8)], "dim": 1}, (X,), {},
    ),
    "component.relative_position_bias.RelativePositionBias": ((), {"n_heads": 2}, (2, 5, 5), {}),
    "component.rms_norm.RMSNorm": ((8,), {}, (X,), {}),
    "component.xmoe.moe_layer.MOELayer": ((Top2Gate(8, 2), make_experts(EXPERTS, 8, 16), EXPERTS), {}, (X,), {}),
    "component.xmoe.routing.Top1Gate": ((8, 2), {"use_xmoe": True}, (X.flatten(0, 1),), {}),
    "component.xmoe.routing.Top2Gate": ((8, 2), {"use_xmoe": True}, (X.flatten(0, 1),), {}),
    "component.xpos_relative_position.XPOS": ((8,), {}, (X,), {"offset": 2, "downscale": True}),
    "model.BEiT3.BEiT3": ((PAIRS,), {}, (IDS, IMAGE), {}),
    "model.LongNet.LongNetDecoderLayer": ((LONG_D, 1), {}, (X,), {}),
    "model.LongNet.LongNetDecoder": ((LONG_D, *NO_POSITIONS), {}, (IDS,), {}),
    "model.LongNet.LongNetEncoderLayer": ((LONG_E, 1), {}, (X, None), {}),
    "model.LongNet.LongNetEncoder": ((LONG_E,), {}, (None,), {"token_embeddings": X}),
}  # fmt: skip
ABSENT = {"moe_layer": "a layer without experts", "ffn": "a layer with experts", "wg_reduction": "a linear gate"}
"""Attributes that only some objects of a class have, in TorchScale as well."""
NOT_CALLED = ("Config", "set_torch_seed", "_AllToAll", "Allgather")


def listed() -> Iterator[tuple[str, list[str]]]:
    """Path of a class below the package, and its attributes."""
    module, found = "", None
    for line in (Path(__file__).parent / "api.txt").read_text().splitlines():
        if line.startswith("torchscale"):
            module = line.partition(".")[2]
        elif match := re.match(r"  class (\w+)", line):
            if found:
                yield found, []
            found = f"{module}.{match[1]}"
        elif match := re.match(r"      attributes: (.*)", line):
            assert found
            yield found, match[1].split(", ")
            found = None
    if found:
        yield found, []


CLASSES = [(name, attributes) for name, attributes in listed() if not name.endswith(NOT_CALLED)]


@pytest.mark.parametrize(("name", "attributes"), CLASSES, ids=[name for name, _ in CLASSES])
def test_class_is_built_and_called(name: str, attributes: list[str]) -> None:
    arguments, keywords, inputs, options = BUILT[name]
    module, _, owner = f"torchscale_fairseq.torchscale_api.{name}".rpartition(".")
    built = getattr(importlib.import_module(module), owner)(*arguments, **keywords)
    built(*inputs, **options)
    assert [a for a in attributes if not hasattr(built, a) and a not in ABSENT] == []


def test_every_class_is_built() -> None:
    assert {name for name, _ in CLASSES} == set(BUILT) and len(CLASSES) > 25


@pytest.mark.parametrize(
    ("name", "attributes"), [(n, a) for n, a in listed() if n.endswith("Config")], ids=lambda value: str(value)[:40]
)
def test_config_has_the_attributes(name: str, attributes: list[str]) -> None:
    built = getattr(config, name.rpartition(".")[2])()
    assert set(attributes) <= set(vars(built))
