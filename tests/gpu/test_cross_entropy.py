"""The kernel of the loss against its definition in float64."""

import pytest
import torch

from tests.gpu.kernels import DEVICE, KERNELS_RUN, on_a_gpu
from tests.helpers import assert_close
from torchscale_fairseq.core.ops.linear_cross_entropy import from_logits, summed_linear_cross_entropy

pytestmark = KERNELS_RUN
IGNORED = 3


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 5), (63, 500), (130, 4097), (17, 50_001)])
@pytest.mark.parametrize("filling", [0, 7])
def test_kernel(rows: int, vocabulary: int, filling: int, dtype: torch.dtype, label_smoothing: float) -> None:
    """Every third target is ignored; one logit stands far out. Columns that fill up the vocabulary hold anything."""
    from torchscale_fairseq.core.ops.cross_entropy_kernel import losses_and_gradients

    generator = torch.Generator(DEVICE).manual_seed(rows)
    wide = 4 * torch.randn(rows, vocabulary + 8, generator=generator, device=DEVICE)
    wide[0, 1] = 60.0
    wide[:, vocabulary:] = torch.inf
    logits = wide.to(dtype)[:, : vocabulary + filling]
    target = torch.randint(vocabulary, (rows,), generator=generator, device=DEVICE)
    target[::3] = IGNORED
    expected = from_logits(logits.double(), target, vocabulary, IGNORED, label_smoothing, 1.0)
    found = losses_and_gradients(logits, target, vocabulary, IGNORED, label_smoothing, 1.0)
    assert_close(found[0], expected[0].float(), "float32")
    assert_close(found[1], expected[1].float(), "float32")
    assert_close(found[2].double(), expected[2], str(dtype).removeprefix("torch."))


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_features_and_weight(dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    features, weight = (torch.randn(n, 64, generator=generator, device="cuda") / 8 for n in (200, 900))
    target = torch.randint(900, (200,), generator=generator, device="cuda")
    results = []
    for kind in (torch.float64, dtype):
        x, w = (t.to(dtype).to(kind).requires_grad_() for t in (features, weight))
        loss, _ = summed_linear_cross_entropy(x, w, target, label_smoothing=0.1, chunk_size=64)
        loss.backward()
        results.append((x.grad, w.grad))
    for exact, found in zip(*results, strict=True):
        assert exact is not None and found is not None
        assert_close(found.double(), exact, str(dtype).removeprefix("torch."))
