"""Where kernels of Triton are tested: on a GPU, or by Triton's interpreter with TRITON_INTERPRET=1."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS_RUN = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no CUDA device and no interpreter"
    ),
]
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
