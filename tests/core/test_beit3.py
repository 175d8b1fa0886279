"""BEiT3: which parameters serve which modality, padding, masks, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import assert_close
from torchscale_fairseq import BEiT3, BEiT3Config

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "img_size": 8,
    "patch_size": 4,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "max_source_positions": 7,
}


@pytest.fixture
def model() -> BEiT3:
    torch.manual_seed(0)
    return BEiT3(BEiT3Config(**SIZES)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


WORDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def test_attention_is_shared_and_feed_forward_networks_are_not(model: BEiT3) -> None:
    names = {name for name, _ in model.named_parameters()}
    assert "encoder.layers.0.self_attn.q_proj.weight" in names
    assert {"encoder.layers.0.ffn.A.fc1.weight", "encoder.layers.0.ffn.B.fc1.weight"} <= names


@pytest.mark.parametrize("unused", ["A", "B"])
def test_a_modality_alone_uses_its_own_networks(model: BEiT3, images: Tensor, unused: str) -> None:
    output = model(textual_tokens=WORDS) if unused == "A" else model(visual_tokens=images)
    output["encoder_out"].square().sum().backward()
    for name, parameter in model.encoder.named_parameters():
        if f".{unused}." in name:
            assert parameter.grad is None or not parameter.grad.any(), name


def test_padding_changes_nothing(model: BEiT3, images: Tensor) -> None:
    """On either side of the words."""
    expected = model(WORDS, images)["encoder_out"]
    for place in (slice(0, 4), slice(3, 7), slice(1, 5)):
        words, padding = torch.ones(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.bool)
        words[:, place], padding[:, place] = WORDS, False
        output = model(words, images, padding)["encoder_out"]
        assert_close(output[:, :5], expected[:, :5], "float32", "image")
        assert_close(output[:, 5:][:, place], expected[:, 5:], "float32", "words")


def test_masked_patches_are_not_seen(model: BEiT3, images: Tensor) -> None:
    masked = torch.tensor([[True, False, False, False]] * 2)
    changed = images.clone()
    changed[:, :, :4, :4] += 1.0
    first, second = (model(WORDS, x, vision_masked_position=masked)["encoder_out"] for x in (images, changed))
    assert torch.equal(first, second)
    assert not torch.equal(first, model(WORDS, images)["encoder_out"])


def test_what_cannot_be_read_is_refused(model: BEiT3, images: Tensor) -> None:
    with pytest.raises(ValueError, match="needs textual_tokens, visual_tokens or both"):
        model()
    with pytest.raises(ValueError, match=r"images are of 8 x 4 pixels and must be of img_size \(8\) x 8"):
        model(visual_tokens=images[..., :4])
    with pytest.raises(ValueError, match=r"a text of 8 tokens is longer than max_source_positions \(7\)"):
        model(WORDS.repeat(1, 2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"img_size": 10}, r"img_size \(10\) must be a multiple of patch_size \(4\); give img_size=8\."),
        ({"vocab_size": -1}, "vocab_size .* must be positive"),
        ({"multiway": False}, "BEiT3 is multiway"),
    ],
)
def test_wrong_options_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEiT3(BEiT3Config(**{**SIZES, **changed}))
