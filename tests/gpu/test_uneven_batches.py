"""Compiled translation on a GPU, over batches that have no shape twice."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from tests.core.models import VOCABULARY, randomize, tokens
from torchscale_fairseq import EncoderDecoder, EncoderDecoderConfig
from torchscale_fairseq.core.ops.masks import know_padding
from torchscale_fairseq.core.ops.positions import padding_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
BATCHES = 12
LOSS_SCALE = 64
"""Gradients of a mean are too small for float16."""
TIMES_USUAL = 2
"""Compiled code rounds less often, but in another order."""
MOST_PIECES = 2 * 3
"""Per side code for batches without padding, and for those with it, where rows of masks are aligned and where not."""


def build(dtype: torch.dtype = torch.float16, **options: Any) -> EncoderDecoder:
    sizes = {"embed_dim": 64, "ffn_embed_dim": 96, "attention_heads": 2, "layers": 2}
    of_sides: dict[str, Any] = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sizes.items()}
    config = EncoderDecoderConfig(vocab_size=VOCABULARY, deepnorm=True, subln=False, **of_sides, **options)
    return randomize(EncoderDecoder(config)).to(DEVICE, dtype).train()


def results(model: EncoderDecoder) -> list[Tensor]:
    """Logits of each batch, then the gradients of all."""
    found = []
    for seed in range(BATCHES):
        source, target = tokens(30 + seed, 4 + 3 * seed, seed), tokens(30 + seed, 43 + 2 * seed, seed)
        padding = torch.zeros_like(source, dtype=torch.bool)
        padding[0, :1] = seed % 3 > 0
        noted = know_padding(padding.to(DEVICE), padding_of(padding))
        encoded = model.encoder(source.to(DEVICE), encoder_padding_mask=noted)
        logits, _ = model.decoder(target.to(DEVICE), encoder_out=encoded)
        (LOSS_SCALE * logits.float().logsumexp(-1).mean()).backward()
        found.append(logits.detach())
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return [*found, torch.cat(gradients)]  # those of the keys' biases are zero but for rounding


def errors(found: list[Tensor], exact: list[Tensor]) -> list[Tensor]:
    """Relative, in the mean."""
    return [
        (one.double() - other.double()).norm() / other.double().norm() for one, other in zip(found, exact, strict=True)
    ]


def test_compiled_translation() -> None:
    """It is as close to float32 as layers that are not compiled. New shapes compile nothing, and no kernel of cuDNN,
    which would plan for each, serves them."""
    torch._dynamo.reset()
    counters.clear()
    exact, plain, compiled = build(torch.float32), build(), build(compile=True)
    expected = results(exact)
    with torch._inductor.config.patch(force_disable_caches=True):
        found, written = run_and_get_code(results, compiled)
    for error, usual in zip(errors(found, expected), errors(results(plain), expected), strict=True):
        assert error < TIMES_USUAL * usual
    assert 0 < counters["stats"]["unique_graphs"] <= MOST_PIECES
    assert written and not any("product_cudnn" in code for code in written)
