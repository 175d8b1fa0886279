"""Patches embedded some at a time: the same as all at once, and gradients too."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import assert_close
from torchscale_fairseq import LongViTClassifier, LongViTConfig
from torchscale_fairseq.core.ops import patch_embedding
from torchscale_fairseq.core.ops.patch_embedding import embed_patches

BATCH, PATCHES, SIZE, WIDTH, LENGTH = 2, 10, 4, 5, 12


class InParts:
    """Parts of an image in another order, and how often it was read."""

    def __init__(self, patches: Tensor):
        self.patches, self.times_read = patches, 0

    def __iter__(self):
        self.times_read += 1
        for positions in torch.randperm(len(self.patches), generator=torch.Generator().manual_seed(0)).split(3):
            yield positions, self.patches[positions]


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("streamed", [False, True])
def test_equals_the_definition(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(patch_embedding.VALUES_AT_ONCE, "cpu", 4 * 3 * SIZE**2)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, 3, SIZE, SIZE, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    direction = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, generator=generator)
    patches = pixels(BATCH, PATCHES, 3, SIZE, SIZE)
    expected = F.conv2d(patches.flatten(0, 1).double() / 127.5 - 1, weight, bias).view(BATCH, PATCHES, WIDTH)
    expected = F.pad(expected, (0, 0, 0, LENGTH - PATCHES))
    sources = [InParts(image) for image in patches]
    result = embed_patches(sources if streamed else patches, LENGTH, weight, bias)
    assert_close(result, expected, "float64")
    assert not result[:, PATCHES:].any()
    gradients = [torch.autograd.grad(x, (weight, bias), direction, retain_graph=True) for x in (result, expected)]
    for name, found, wanted in zip(("weight", "bias"), *gradients, strict=True):
        assert_close(found, wanted, "float64", name)
    assert all(source.times_read == (2 if streamed else 0) for source in sources)


def test_a_classifier_reads_images_either_way() -> None:
    torch.manual_seed(0)
    config = LongViTConfig(
        img_size=32,
        patch_size=8,
        encoder_layers=1,
        encoder_embed_dim=16,
        encoder_ffn_embed_dim=24,
        encoder_attention_heads=4,
        segment_length=[4, 16],
        dilated_ratio=[1, 2],
    )
    model = LongViTClassifier(config, 3).eval()
    image = pixels(2, 3, 32, 32)
    patches = image.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    assert_close(model.forward_patches(patches), model(image / 127.5 - 1), "float32")
