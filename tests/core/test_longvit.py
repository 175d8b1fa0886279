"""LongViT: what it computes, at which sizes, and what is refused."""

from typing import Any

import pytest
import torch

from tests.helpers import assert_close
from torchscale_fairseq import LongNetEncoder, LongViT, LongViTClassifier, LongViTConfig
from torchscale_fairseq.core.architectures.longvit import resized_positions

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 4,
    "segment_length": [4, 16],
    "dilated_ratio": [1, 2],
}


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_released_small_model() -> None:
    """Names and shapes of its weights (REFERENCE: 12 layers of width 384, 16 heads, patches of 32 pixels)."""
    with torch.device("meta"):
        model = LongViTClassifier(LongViTConfig(), 2)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert shapes["model.patch_embed.proj.weight"] == (384, 3, 32, 32)
    assert shapes["model.pos_embed"] == (1, 1024, 384)
    assert shapes["model.encoder.layers.11.self_attn.q_proj.weight"] == (384, 384)
    assert shapes["model.encoder.layers.11.self_attn.inner_attn_ln.weight"] == (384,)
    assert shapes["model.encoder.layers.11.ffn.fc1.weight"] == (1536, 384)
    assert shapes["fc_norm.weight"] == (384,) and shapes["head.weight"] == (2, 384)
    assert "model.encoder.layer_norm.weight" not in shapes and "model.patch_embed.cls_token" not in shapes


@pytest.mark.parametrize(
    ("size", "longest"), [(512, 1024), (1024, 1024), (2048, 16384), (16384, 262144), (65536, 1048576)]
)
def test_segments_follow_the_size(size: int, longest: int) -> None:
    assert LongViTConfig(img_size=size).segment_lengths[-1] == longest


def test_is_a_longnet_over_patches() -> None:
    torch.manual_seed(0)
    model = LongViT(LongViTConfig(**SMALL)).eval()
    encoder = LongNetEncoder(model.config).eval()
    encoder.load_state_dict(model.encoder.state_dict())
    batch = images(2, 3, 32, 32)
    patches = batch.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    embedded = patches @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias + model.pos_embed
    assert_close(model(batch), encoder(None, token_embeddings=embedded)["encoder_out"], "float32")


def test_images_of_other_sizes() -> None:
    """Positions are interpolated: twice the size of a constant grid is constant."""
    model = LongViT(LongViTConfig(**SMALL)).eval()
    assert model(images(1, 3, 64, 40)).shape == (1, 8 * 5, 16)
    torch.nn.init.constant_(model.pos_embed, 0.5)
    assert_close(resized_positions(model.pos_embed, 8, 5), torch.full((1, 40, 16), 0.5), "float32")


def test_gradients_reach_everything() -> None:
    model = LongViTClassifier(LongViTConfig(**SMALL, checkpoint_activations=True, ffn_chunk_size=5), 3)
    model(images(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_patches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"img_size \(30\) must be a multiple of patch_size \(8\); give img_size=24\."):
        LongViTConfig(**{**SMALL, "img_size": 30})
    with pytest.raises(ValueError, match="an image of 32 x 30 pixels is not made of whole patches"):
        LongViT(LongViTConfig(**SMALL))(images(1, 3, 32, 30))
