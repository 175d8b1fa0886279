"""Initial values after the papers (TorchScale's are in tests/parity)."""

import math
from typing import Any

import pytest
import torch

from torchscale_fairseq import Decoder, DecoderConfig, Encoder, EncoderConfig, EncoderDecoder, EncoderDecoderConfig
from torchscale_fairseq.core.initialization import ResidualScaling, deepnorm_scaling, subln_scaling

WIDTH, INNER, LAYERS = 192, 384, 4
ENCODER: dict[str, Any] = {"encoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": INNER, "encoder_layers": LAYERS}
DECODER: dict[str, Any] = {"decoder_embed_dim": WIDTH, "decoder_ffn_embed_dim": INNER, "decoder_layers": 2 * LAYERS}


def test_deepnorm_constants_of_the_paper() -> None:
    """DeepNet, figure 2, at N = 6 and M = 12."""
    encoder, decoder = deepnorm_scaling(encoder_layers=6, decoder_layers=12)
    assert encoder.alpha == pytest.approx(0.81 * (6**4 * 12) ** 0.0625)
    assert encoder.gain == pytest.approx(0.87 * (6**4 * 12) ** -0.0625)
    assert decoder.alpha == pytest.approx(36**0.25)
    assert decoder.gain == pytest.approx(144**-0.25)
    alone, _ = deepnorm_scaling(encoder_layers=8, decoder_layers=0)
    assert (alone.alpha, alone.gain) == (pytest.approx(2.0), pytest.approx(64**-0.25))


def test_subln_gains_of_the_paper() -> None:
    encoder, decoder = subln_scaling(encoder_layers=6, decoder_layers=12)
    assert encoder.gain == pytest.approx(math.sqrt(math.log(36) * math.log(12) / 3))
    assert decoder.gain == pytest.approx(math.sqrt(math.log(36)))
    assert subln_scaling(encoder_layers=0, decoder_layers=6)[1].gain == pytest.approx(math.sqrt(math.log(12)))
    assert encoder.alpha == decoder.alpha == 1.0


def xavier_std(fan_in: int, fan_out: int) -> float:
    return math.sqrt(2 / (fan_in + fan_out))


@pytest.mark.parametrize("mode", ["deepnorm", "subln"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_xavier_with_gains(mode: str, architecture: str) -> None:
    options: dict[str, Any] = {mode: True}
    torch.manual_seed(0)
    n, m = (0 if architecture == "decoder" else LAYERS), (0 if architecture == "encoder" else 2 * LAYERS)
    scalings = {"deepnorm": deepnorm_scaling, "subln": subln_scaling}[mode](encoder_layers=n, decoder_layers=m)
    sides: list[tuple[Any, ResidualScaling]]
    if architecture == "encoder":
        sides = [(Encoder(EncoderConfig(**ENCODER, **options)), scalings[0])]
    elif architecture == "decoder":
        sides = [(Decoder(DecoderConfig(**DECODER, **options)), scalings[1])]
    else:
        model = EncoderDecoder(EncoderDecoderConfig(**ENCODER, **DECODER, **options))
        sides = list(zip((model.encoder, model.decoder), scalings, strict=True))
    for side, scaling in sides:
        assert side.layers[0].residual.alpha == scaling.alpha
        for name, p in side.layers.named_parameters():
            if "norm" in name or "_ln" in name:
                continue
            if name.endswith("bias"):
                assert not p.any(), name
                continue
            scaled = any(part in name for part in ("v_proj", "out_proj", "fc1", "fc2"))
            if mode == "subln" and "encoder_attn" in name:
                scaled = False
            expected = xavier_std(*p.shape) * (scaling.gain if scaled else 1.0)
            assert p.std().item() == pytest.approx(expected, rel=0.02), name
            assert p.abs().max() > 3 * p.std(), f"{name} is drawn from a normal distribution"


def test_plain_models_are_xavier_uniform() -> None:
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(**ENCODER, subln=False))
    attention: Any = model.layers[0].self_attn
    assert attention.q_proj.weight.abs().max() <= math.sqrt(3) * xavier_std(WIDTH, WIDTH) / math.sqrt(2) + 1e-6
    assert attention.out_proj.weight.std().item() == pytest.approx(xavier_std(WIDTH, WIDTH), rel=0.02)
    assert attention.q_proj.weight.std().item() == pytest.approx(xavier_std(WIDTH, WIDTH) / math.sqrt(2), rel=0.02)


def test_bert_initialisation() -> None:
    torch.manual_seed(0)
    model: Any = Encoder(EncoderConfig(vocab_size=500, **ENCODER, subln=False, bert_init=True))
    assert model.layers[0].ffn.fc1.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.embed_tokens.weight[2:].std().item() == pytest.approx(0.02, rel=0.03)
    assert not model.embed_tokens.weight[1].any(), "the padding row stays zero"
    assert model.output_projection.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_vocabulary_matrices() -> None:
    torch.manual_seed(0)
    model: Any = Decoder(DecoderConfig(vocab_size=500, **DECODER))
    for matrix in (model.embed_tokens.weight, model.output_projection.weight):
        assert matrix.std().item() == pytest.approx(WIDTH**-0.5, rel=0.03)
    tied = Decoder(DecoderConfig(vocab_size=500, **DECODER, share_decoder_input_output_embed=True))
    assert tied.output_projection.weight is tied.embed_tokens.weight
