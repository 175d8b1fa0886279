"""BEiT-3's heads against their definitions written out, cached captions, the contrastive loss and recall."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import assert_close
from torchscale_fairseq import BEiT3Config
from torchscale_fairseq.core.architectures.beit3_captioning import BEiT3ForCaptioning, prefix_mask, reorder
from torchscale_fairseq.core.architectures.beit3_jobs import (
    BEiT3ForImageClassification,
    BEiT3ForQuestionAnswering,
    BEiT3ForRetrieval,
    BEiT3ForVisualReasoning,
)
from torchscale_fairseq.core.ops.contrastive import contrastive_losses
from torchscale_fairseq.core.ops.recall import ranks, recalls

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "img_size": 8,
    "patch_size": 4,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "max_source_positions": 9,
}
IMAGE_TOKENS = 5
MASK = 19


def made(kind: Any, *arguments: int, **options: Any) -> Any:
    """A head in float64, with values that are not those of the start."""
    torch.manual_seed(0)
    model = kind(BEiT3Config(**{**SIZES, **options}), *arguments).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def drawn(*images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, and words of which the second row is shorter."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(4, 19, (2, 6), generator=generator)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    return torch.randn(2, *images, 3, 8, 8, generator=generator).double(), words.masked_fill(padding, 1), padding


def norm(x: Tensor, module: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def dense(x: Tensor, module: Any) -> Tensor:
    return x @ module.weight.T + module.bias


def check(model: Any, found: Tensor, expected: Tensor) -> None:
    """Values, and gradients of every parameter that is trained."""
    assert_close(found, expected, "float64", "forward")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).double()
    pairs = [
        torch.autograd.grad((x * weight).sum(), list(trained.values()), allow_unused=True, retain_graph=True)
        for x in (found, expected)
    ]
    for name, ours, theirs in zip(trained, *pairs, strict=True):
        if ours is not None or theirs is not None:
            assert_close(ours, theirs, "float64", name)


def test_image_classification() -> None:
    model = made(BEiT3ForImageClassification, 3)
    images, _, _ = drawn()
    features = model.beit3(visual_tokens=images)["encoder_out"]
    expected = dense(norm(sum(features[:, place] for place in range(1, 5)) / 4, model.fc_norm), model.head)
    check(model, model(images), expected)
    assert model.beit3.encoder.layer_norm is None
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".B." in name or "text_embed" in name)


def test_question_answering() -> None:
    model = made(BEiT3ForQuestionAnswering, 7)
    images, words, padding = drawn()
    features = model.beit3(words, images, padding)["encoder_out"]
    pooled = dense(norm(features[:, 0], model.pooler.norm), model.pooler.dense).tanh()
    inner = F.gelu(norm(dense(pooled, model.head[0]), model.head[1]))
    check(model, model(images, words, padding), dense(inner, model.head[3]))
    assert model.beit3.encoder.layer_norm is None


def test_visual_reasoning() -> None:
    """Class token and first word of the first image, then of the second, as the released code joins them."""
    model = made(BEiT3ForVisualReasoning)
    images, words, padding = drawn(2)
    parts = []
    for side in range(2):
        features = model.beit3(words, images[:, side], padding)["encoder_out"]
        parts += [features[:, 0], features[:, IMAGE_TOKENS]]
    head = model.head
    inner = F.gelu(norm(dense(norm(torch.cat(parts, -1), head.norm1), head.dense1), head.norm2))
    check(model, model(images, words, padding), dense(inner, head.dense2))


def test_retrieval() -> None:
    model = made(BEiT3ForRetrieval)
    images, words, padding = drawn()
    seen = model.beit3(visual_tokens=images)["encoder_out"][:, 0] @ model.vision_head.weight.T
    read = model.beit3(words, text_padding_position=padding)["encoder_out"][:, 0] @ model.language_head.weight.T
    expected = [x / x.square().sum(-1, keepdim=True).sqrt() for x in (seen, read)]
    found = model(images, words, padding)
    check(model, torch.cat(found[:2]), torch.cat(expected))
    assert_close(found[2], model.logit_scale.exp(), "float64", "scale")


def test_captioning() -> None:
    """A word sees the image and the words up to itself; the image sees no word."""
    model = made(BEiT3ForCaptioning)
    images, words, padding = drawn()
    hidden = torch.tensor(
        [
            [not (key < IMAGE_TOKENS or IMAGE_TOKENS <= key <= query) for key in range(IMAGE_TOKENS + 6)]
            for query in range(IMAGE_TOKENS + 6)
        ]
    )
    assert torch.equal(prefix_mask(IMAGE_TOKENS, 6), hidden)
    features = model.beit3(words, images, padding, attn_mask=hidden)["encoder_out"][:, IMAGE_TOKENS:]
    wanted = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    expected = torch.stack([dense(features[row, word], model.mlm_head) for row, word in ((0, 1), (0, 3), (1, 2))])
    check(model, model(images, words, padding, wanted), expected)
    changed = words.clone()
    changed[:, 3:] = 5
    assert_close(model(images, changed)[:, :3], model(images, words)[:, :3], "float64", "earlier words")


@torch.no_grad()
@pytest.mark.parametrize("official", [False, True])
def test_cached_captions_equal_the_whole(official: bool) -> None:
    """Step by step with the cache, after beams have changed places, as with the whole caption at once."""
    model = made(BEiT3ForCaptioning, torchscale_compatible=official)
    images, words, _ = drawn()
    state = model.read_images(images)
    reorder(state, torch.tensor([0, 0, 1, 1]))
    images, words = images.repeat_interleave(2, 0), torch.cat((words, words.flip(1)))[[0, 2, 1, 3]]
    for place in range(5):
        found = model.next_word(state, words[:, place], place, MASK)
        so_far = torch.cat((words[:, : place + 1], torch.full((4, 1), MASK)), 1)
        assert_close(found, model(images, so_far)[:, -1], "float64", f"word {place}")
        order = torch.tensor([1, 0, 3, 3])
        reorder(state, order)
        images, words = images[order], words[order]


def test_contrastive_loss_by_hand() -> None:
    """Scores of pairs ln 3, of others 0: the right one of two has the probability 3/4."""
    vectors = torch.eye(2, dtype=torch.float64)
    losses = contrastive_losses(vectors, vectors, torch.tensor(3.0).double().log())
    assert_close(losses, torch.full((2,), 4 / 3, dtype=torch.float64).log(), "float64", "losses")


def test_recall_by_sorting() -> None:
    """In blocks and from a mapped array, as by sorting all scores."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(count, 6, generator=generator) for count in (23, 70))
    image_of_text = torch.arange(70) % 23
    order = (texts @ images.T).argsort(descending=True)
    places = (order == image_of_text[:, None]).int().argmax(1)
    assert torch.equal(ranks(texts, images, image_of_text, torch.arange(23), block=8), places)
    found = recalls(images.numpy(), np.asarray(texts), image_of_text, block=9)
    assert found["text_to_image_r5"] == pytest.approx(100 * float((places < 5).double().mean()))
    back = (images @ texts.T).argsort(descending=True)
    first = (image_of_text[back] == torch.arange(23)[:, None]).int().argmax(1)
    right = 100 * float((first < 10).double().mean())
    assert found["image_to_text_r10"] == pytest.approx(right)


def test_equal_scores_are_no_success() -> None:
    same = torch.ones(20, 4)
    assert recalls(same, same, torch.arange(20))["text_to_image_r10"] == 0.0
