"""Model FLOPs, against counts by hand and torch's own counter."""

from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.core.models import encoder, encoder_decoder, tokens
from torchscale_fairseq import DecoderConfig, RetNetConfig
from torchscale_fairseq.core.flops import Load, training_flops

SIZES: dict[str, Any] = {"decoder_layers": 2, "decoder_embed_dim": 8, "decoder_ffn_embed_dim": 16, "vocab_size": 40}


def test_decoder_by_hand() -> None:
    """Two sequences of 3 and 5 tokens."""
    config = DecoderConfig(**SIZES, decoder_attention_heads=2)
    matrices = 2 * (4 * 64 + 2 * 8 * 16)
    attention = 12 * 2 * 8 * (9 + 25) / 2
    load = Load((3, 5))
    assert training_flops(config, decoder=load, predictions=7) == 8 * 6 * matrices + 7 * 6 * 8 * 40 + attention


def test_experts_count_by_those_that_a_token_meets() -> None:
    plain = DecoderConfig(**SIZES, decoder_attention_heads=2)
    mixed = DecoderConfig(**SIZES, decoder_attention_heads=2, moe_freq=2, moe_expert_count=4, moe_expert_ffn_dim=10)
    one, other = (training_flops(c, decoder=Load((5,)), predictions=5) for c in (plain, mixed))
    assert other - one == 5 * 6 * (2 * 2 * 8 * 10 + 8 * 4 - 2 * 8 * 16)


@pytest.mark.parametrize(("length", "form"), [(2, "parallel"), (500, "recurrent")])
def test_retention_by_hand(length: int, form: str) -> None:
    config = RetNetConfig(**SIZES, decoder_value_embed_dim=12, decoder_retention_heads=2)
    matrices = 2 * length * 2 * (2 * 64 + 3 * 8 * 12 + 3 * 8 * 16)
    mixing = 2 * {"parallel": 2 * 20 * length**2 / 2, "recurrent": 4 * length * 8 * 12 / 2}[form]
    assert training_flops(config, decoder=Load((length,)), predictions=0) == 3 * (matrices + mixing)


def test_encoder_as_torch_counts() -> None:
    model = encoder(attention_backend="naive")
    with FlopCounterMode(display=False) as counter:
        model(tokens(2, 9))["encoder_out"].sum().backward()
    assert counter.get_total_flops() == training_flops(model.config, encoder=Load((9, 9)), predictions=18)


def test_encoder_decoder_as_torch_counts() -> None:
    """torch counts all scores of the decoder's self-attention, of which half are needed."""
    model = encoder_decoder(attention_backend="naive")
    config = model.decoder.config
    with FlopCounterMode(display=False) as counter:
        model(tokens(2, 9), tokens(2, 7))[0].sum().backward()
    superfluous = 12 * config.decoder_layers * config.decoder_embed_dim * 2 * 49 / 2
    loads: dict[str, Any] = {"encoder": Load((9, 9)), "decoder": Load((7, 7))}
    assert counter.get_total_flops() == superfluous + training_flops(config, **loads, predictions=14, pairs=2 * 9 * 7)


def test_dilated_attention_by_hand() -> None:
    """A sequence of 12 tokens: three segments of 4 whole, and one of all, of which every second token counts."""
    dense = DecoderConfig(**SIZES, decoder_attention_heads=2)
    dilated = DecoderConfig(**SIZES, decoder_attention_heads=2, segment_length="[4,16]", dilated_ratio="[1,2]")
    with_all, with_few = (training_flops(c, decoder=Load((12,)), predictions=0) for c in (dense, dilated))
    assert with_all - with_few == 12 * 2 * 8 * (12**2 - (3 * 4**2 + 6**2)) / 2
