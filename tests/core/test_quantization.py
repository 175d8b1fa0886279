"""BitNet's quantisers against numbers worked out by hand, and its layers."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.core.models import decoder, encoder, encoder_decoder, tokens
from tests.helpers import assert_close
from torchscale_fairseq import Decoder, DecoderConfig, RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.layers.bit_linear import BitKind, BitLinear, PackedWeight
from torchscale_fairseq.core.ops.quantization import (
    RECIPES,
    SCHEMES,
    pack,
    packed_width,
    quantize_activations,
    quantize_weight,
    straight_through,
    unpack,
)

WEIGHT = torch.tensor([[0.5, -1.5, 0.0], [0.2, 1.0, -0.8]], dtype=torch.float64)
"""Mean absolute value 2/3, mean -0.1."""


def test_ternary_by_hand() -> None:
    values, scale = quantize_weight(WEIGHT, "b1.58")
    assert values.tolist() == [[1, -1, 0], [0, 1, -1]]
    assert_close(scale, torch.full((1, 1), 4.0 / 6, dtype=torch.float64), "float64")


def test_binary_by_hand() -> None:
    values, scale = quantize_weight(WEIGHT, "b1")
    assert values.tolist() == [[1, -1, 1], [1, 1, -1]]
    assert scale.item() == pytest.approx(4.0 / 6)


def test_a_weight_equal_to_the_mean_is_negative() -> None:
    assert quantize_weight(torch.tensor([[1.0, 2.0, 3.0]]), "b1").values.tolist() == [[-1, -1, 1]]


def test_matrices_of_a_stack_have_scales_of_their_own() -> None:
    stack = torch.stack((WEIGHT, 10 * WEIGHT))
    values, scale = quantize_weight(stack, "b1.58")
    assert torch.equal(values[0], values[1])
    assert_close(scale[1], 10 * scale[0], "float64")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_unpacking_takes_nothing_from_the_host(scheme: str) -> None:
    """A CUDA graph of a decoding step cannot copy from there. The first call may, before a step is recorded."""

    class Devices(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.update(x.device.type for x in args if isinstance(x, Tensor))
            return func(*args, **(kwargs or {}))

    seen: set[str] = set()
    packed = pack(torch.ones(4, 10, device="meta"), scheme)
    unpack(packed, scheme, 10, torch.float32)
    with Devices():
        unpack(packed, scheme, 10, torch.float32)
    assert seen == {"meta"}


def test_activations_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 0.505], [0.0, 4.0, 0.0]], dtype=torch.float64)
    faq = quantize_activations(x, "faq")
    assert faq.values.tolist() == [[64, -127, 32], [0, 127, 0]]  # 63.5 to even, 32.07
    assert faq.scale.flatten().tolist() == pytest.approx([2 / 127, 4 / 127])
    paper = quantize_activations(x, "paper")
    assert paper.values.tolist() == [[64, -127, 32], [0, 127, 0]]  # 128 is clipped
    assert paper.scale.flatten().tolist() == pytest.approx([2 / 128, 4 / 128])


def test_activations_with_one_scale_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    assert quantize_activations(x, "paper", shared_scale=True).values.tolist() == [[32, -64], [0, 127]]


def test_activations_from_their_minimum_by_hand() -> None:
    quantized = quantize_activations(torch.tensor([[-1.0, 0.0, 3.0]]), "paper", from_minimum=True)
    assert quantized.values.tolist() == [[0, 32, 127]]
    assert quantized.scale.item() == 4 / 128


def test_zeros_stay_zeros() -> None:
    for recipe in RECIPES:
        assert quantize_activations(torch.zeros(2, 4), recipe).real().eq(0).all()
    assert quantize_weight(torch.zeros(3, 4), "b1.58").real().eq(0).all()


def test_gradients_pass_straight_through() -> None:
    weight = WEIGHT.clone().requires_grad_()
    quantized = quantize_weight(weight, "b1.58").real()
    result = straight_through(weight, quantized)
    assert torch.equal(result, quantized)
    direction = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    (result * direction).sum().backward()
    assert torch.equal(weight.grad, direction)


@given(
    scheme=st.sampled_from(SCHEMES),
    rows=st.integers(1, 4),
    width=st.integers(1, 23),
    seed=st.integers(0, 1000),
)
def test_packing_loses_nothing(scheme: str, rows: int, width: int, seed: int) -> None:
    weight = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed))
    values = quantize_weight(weight, scheme).values
    packed = pack(values, scheme)
    assert packed.dtype == torch.uint8 and packed.shape == (2, rows, packed_width(width, scheme))
    assert torch.equal(unpack(packed, scheme, width, torch.float32), values)


def test_bits_of_a_packed_weight() -> None:
    assert 8 * packed_width(1000, "b1.58") / 1000 == 1.6
    assert 8 * packed_width(1000, "b1") / 1000 == 1.0


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layer_is_a_product_of_whole_numbers(scheme: str, recipe: str) -> None:
    """In evaluation: integers times integers, times the two scales."""
    torch.manual_seed(0)
    layer = BitKind(scheme, recipe, 1e-5).linear(12, 6, activated=True).double().eval()
    x = torch.randn(3, 4, 12, dtype=torch.float64)
    normed = layer.norm(x)
    shifted = (scheme, recipe) == ("b1", "paper")
    rows, row_scale = quantize_activations(normed, recipe, from_minimum=shifted)
    assert isinstance(layer.weight, torch.Tensor)
    weights, weight_scale = quantize_weight(layer.weight, scheme)
    expected = (rows.long() @ weights.long().T).double() * row_scale * weight_scale
    assert_close(layer(x), expected, "float64")


def test_scale_for_all_tokens_in_training_alone() -> None:
    """b1's paper: per tensor in training, per token in use; the other recipes per token in both."""
    x = torch.randn(2, 3, 8) * torch.tensor([1.0, 50.0, 3.0])[:, None] + 5
    for scheme in SCHEMES:
        for recipe in RECIPES:
            layer = BitLinear(8, 4, BitKind(scheme, recipe, 1e-5))
            layer.norm = nn.Identity()
            differs = not torch.allclose(layer.train()(x), layer.eval()(x))
            assert differs == ((scheme, recipe) == ("b1", "paper"))


MODELS = {
    "decoder": lambda **o: decoder(**o),
    "decoder_deepnorm": lambda **o: decoder(deepnorm=True, **o),
    "decoder_glu": lambda **o: decoder(gated_ffn=True, norm="rmsnorm", **o),
    "experts": lambda **o: decoder(moe_freq=2, moe_expert_count=4, **o),
    "encoder": lambda **o: encoder(**o),
    "encoder_decoder": lambda **o: encoder_decoder(**o),
    "retnet": lambda **o: RetNetDecoder(
        RetNetConfig(
            vocab_size=40,
            decoder_embed_dim=24,
            decoder_value_embed_dim=36,
            decoder_ffn_embed_dim=40,
            decoder_retention_heads=2,
            decoder_layers=2,
            **o,
        )
    ).eval(),
}


def logits(model: nn.Module) -> Tensor:
    batch = tokens(2, 9)
    output = model(batch, batch) if hasattr(model, "encoder") else model(batch)
    return output["encoder_out"] if isinstance(output, dict) else output[0]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_trains_packs_and_agrees(name: str, scheme: str, recipe: str) -> None:
    model = MODELS[name](bitnet=scheme, bitnet_recipe=recipe)
    expected = logits(model)
    expected.square().sum().backward()
    untouched = [key for key, p in model.named_parameters() if p.grad is None]
    assert not untouched
    packed = MODELS[name](bitnet=scheme, bitnet_recipe=recipe, bitnet_packed=True)
    state = model.state_dict()
    content: dict[Any, Any] = {}
    for key, value in state.items():
        if f"{key.removesuffix('weight')}norm.weight" in state:
            content |= {f"{key}.{part}": x for part, x in PackedWeight.contents(value, scheme).items()}
        else:
            content[key] = value
    packed.load_state_dict(content)
    assert_close(logits(packed), expected, "float32")


def test_embeddings_output_and_routers_stay_whole() -> None:
    model = decoder(bitnet="b1.58", moe_freq=2, moe_expert_count=4)
    plain = {name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)}
    assert all(name.split(".")[-1] in ("output_projection", "wg", "embed_tokens") for name in plain)


def test_packed_weights_are_not_trained() -> None:
    model = decoder(bitnet="b1.58", bitnet_packed=True).train()
    with pytest.raises(ValueError, match="bitnet_packed weights cannot be trained"):
        logits(model)


@pytest.mark.parametrize("options", [{"bitnet_recipe": "paper"}, {"bitnet_packed": True}])
def test_details_without_bitnet_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"has no use without bitnet; give bitnet='b1\.58'"):
        DecoderConfig(**options)


def test_one_scale_for_all_tokens_is_not_made_in_chunks() -> None:
    with pytest.raises(ValueError, match=r"ffn_chunk_size \(64\) would change bitnet=b1"):
        DecoderConfig(bitnet="b1", bitnet_recipe="paper", ffn_chunk_size=64)


def test_half_precision_stays_near() -> None:
    """Whole numbers up to 127 are exact in both."""
    config = DecoderConfig(
        vocab_size=40, decoder_embed_dim=32, decoder_layers=2, decoder_attention_heads=2, bitnet="b1.58"
    )
    torch.manual_seed(0)
    model = Decoder(dataclasses.replace(config, decoder_ffn_embed_dim=64)).eval()
    expected = logits(model)
    for dtype, bound in ((torch.float16, 0.05), (torch.bfloat16, 0.3)):
        error = (logits(model.to(dtype)).float() - expected).abs().mean() / expected.abs().mean()
        assert error < bound, (dtype, error)
