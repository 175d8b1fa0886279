"""TorchScale 0.3.0, which the golden vectors are not from, computes the same as our models of its parameters.

torchscale-fairseq convert from-torchscale relies on that: the versions differ in where deepnorm and subln move norms,
and the names of the parameters tell where they are.
"""

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import official
from tests.core.models import SIZES, VOCABULARY, randomize, tokens
from tests.helpers import assert_close
from torchscale_fairseq import Decoder, DecoderConfig, RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.layers.embedding import PositionalEmbedding, TextEmbedding

pytest.importorskip("torchscale", reason=f"needs {official.INSTALL}")
WIDTH = SIZES["embed_dim"]
DECODER: dict[str, Any] = {"vocab_size": VOCABULARY, **{f"decoder_{name}": value for name, value in SIZES.items()}}


def assert_same_logits(theirs: nn.Module, ours: nn.Module) -> None:
    randomize(theirs).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert_close(ours.eval()(tokens(2, 9))[0], theirs(tokens(2, 9))[0], "parity")


@pytest.mark.parametrize(
    ("options", "pre_norm"),
    [
        ({"deepnorm": True}, False),
        ({"deepnorm": True, "xpos_rel_pos": True}, False),
        ({"subln": True}, True),
        ({"subln": True, "rel_pos_buckets": 8, "max_rel_pos": 16}, True),
        ({"subln": False}, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_decoder(options: dict[str, Any], pre_norm: bool) -> None:
    official.load_official(None)
    from torchscale.architecture.config import DecoderConfig as OfficialConfig
    from torchscale.architecture.decoder import Decoder as OfficialDecoder
    from torchscale.component import embedding

    theirs = OfficialDecoder(
        OfficialConfig(**DECODER, **options),
        embed_tokens=embedding.TextEmbedding(VOCABULARY, WIDTH),
        embed_positions=embedding.PositionalEmbedding(66, WIDTH),
    )
    assert ("layer_norm.weight" in theirs.state_dict()) == pre_norm
    config = DecoderConfig(
        **DECODER,
        **{"subln": False, **options},
        decoder_normalize_before=pre_norm,
        decoder_learned_pos=True,
        no_token_positional_embeddings=False,
        torchscale_compatible=True,
    )
    positions = PositionalEmbedding(66, WIDTH)
    assert_same_logits(theirs, Decoder(config, TextEmbedding(VOCABULARY, WIDTH), positions))


def test_retnet() -> None:
    """Its scores are normalised in another way than main's, which the norm after retention takes out again."""
    official.load_official(None)
    from torchscale.architecture.config import RetNetConfig as OfficialConfig
    from torchscale.architecture.retnet import RetNetDecoder as OfficialDecoder
    from torchscale.component import embedding

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "decoder_embed_dim": WIDTH,
        "decoder_value_embed_dim": 2 * WIDTH,
        "decoder_ffn_embed_dim": 2 * WIDTH,
        "decoder_retention_heads": 2,
        "decoder_layers": 2,
    }
    theirs = OfficialDecoder(OfficialConfig(**sizes), embed_tokens=embedding.TextEmbedding(VOCABULARY, WIDTH))
    config = RetNetConfig(**sizes, torchscale_compatible=True)
    assert_same_logits(theirs, RetNetDecoder(config, TextEmbedding(VOCABULARY, WIDTH)))
