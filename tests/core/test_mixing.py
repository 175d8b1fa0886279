"""Mixup and CutMix, against images that are put together by hand."""

import pytest
import torch
from torch import Tensor

from tests.helpers import assert_close
from torchscale_fairseq.core.ops.mixing import blend, cut, mix
from torchscale_fairseq.core.ops.patch_embedding import whole_images

CPU = torch.device("cpu")


def patches(images: int = 4) -> Tensor:
    """Patches of images of 16 x 16 pixels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (images, 16, 3, 4, 4), generator=generator, dtype=torch.uint8)


def test_blended_images() -> None:
    given = patches()
    expected = (0.25 * given.double() + 0.75 * given.flip(0).double()).round()
    assert torch.equal(blend(given, 0.25).double(), expected)


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [((0.5, 0.5), (4, 12), (4, 12)), ((0.0, 0.75), (0, 4), (8, 16)), ((1.0, 0.0), (12, 16), (0, 4))],
)
def test_a_rectangle_is_the_partners(
    centre: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """A quarter of the area is 8 x 8 of 16 x 16 pixels, less where it crosses the edge."""
    given = patches()
    mixed, share = cut(given, 0.75, torch.tensor(centre))
    expected = whole_images(given, CPU)
    partner = expected.flip(0)
    place = (slice(None), slice(None), slice(*rows), slice(*columns))
    expected = expected.clone()
    expected[place] = partner[place]
    assert torch.equal(whole_images(mixed, CPU), expected)
    assert share == 1 - (rows[1] - rows[0]) * (columns[1] - columns[0]) / 256


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_classes_are_mixed_like_pixels(mixup: float, cutmix: float) -> None:
    """Each image has one value, so that the mean of a mixed one gives its share, to rounding."""
    levels = torch.tensor([0, 200, 50, 250], dtype=torch.uint8)
    given = levels.view(4, 1, 1, 1, 1).expand(4, 16, 3, 4, 4)
    torch.manual_seed(3)
    mixed, targets = mix(given, torch.eye(4), mixup, cutmix)
    assert_close(targets.sum(1), torch.ones(4), "float32")
    means = mixed.float().mean((1, 2, 3, 4))
    torch.testing.assert_close(means, targets @ levels.float(), rtol=0, atol=0.5)


def test_draws_follow_the_seed() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return mix(patches(), torch.eye(4), 0.8, 1.0)[1]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
