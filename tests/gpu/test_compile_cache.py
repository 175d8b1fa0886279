"""A model compiles again from the code that an earlier process left in torch's cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
STEP = """
import torch
from torchscale_fairseq import Decoder, DecoderConfig
torch.manual_seed(0)
config = DecoderConfig(
    vocab_size=99, decoder_embed_dim=2048, decoder_attention_heads=16, decoder_ffn_embed_dim=4096, decoder_layers=1,
    subln=True, compile=True,
)
model = Decoder(config).cuda()
loss = model(torch.arange(4, 20, device="cuda")[None])[0].logsumexp(-1).sum()
loss.backward()
print(float(loss))
"""


def test_second_process_compiles_from_the_cache(tmp_path: Path) -> None:
    """As a resumed run does. The norms are wide enough for reductions in more than one form."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", STEP], env=environment, check=True, capture_output=True, text=True, timeout=300
        )
        for _ in range(2)
    )
    assert float(first.stdout) == pytest.approx(float(second.stdout), rel=1e-5)
