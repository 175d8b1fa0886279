"""Report the environment: versions, GPUs, optional packages, and the backends that can be chosen, with the reasons why
others cannot. Attach it to bug reports."""

import argparse
import platform
import sys
from collections.abc import Iterator
from typing import Any

from torchscale_fairseq import __version__
from torchscale_fairseq.tools.packages import OPTIONAL

EXAMPLE = "torchscale-fairseq environment"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace) -> None:
    for title, rows in (
        ("versions", versions()),
        ("GPUs", gpus()),
        ("optional packages", packages()),
        (f"backends, for {_subject()}", backends()),
    ):
        print(title)
        for name, text in rows:
            print(f"  {name:<34} {text}")


def versions() -> Iterator[tuple[str, str]]:
    """Of this package, Python and torch."""
    import torch

    yield "torchscale-fairseq", __version__
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    cuda = torch.version.cuda or torch.version.hip
    yield "torch", f"{torch.__version__} ({f'built for CUDA {cuda}' if cuda else 'built without CUDA'})"


def gpus() -> Iterator[tuple[str, str]]:
    """Name, memory and compute capability of each GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        yield "none", "torch sees no GPU"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        capability = f"compute capability {found.major}.{found.minor}"
        yield f"cuda:{index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {capability}"


def packages() -> Iterator[tuple[str, str]]:
    """Versions of optional packages, or how to install them."""
    for package in OPTIONAL:
        yield package.distribution, package.version() or f"not installed: {package.install}"


def backends() -> Iterator[tuple[str, str]]:
    """Whether each backend of each operation serves a plain request of the best device here."""
    for option, candidates, request in _operations():
        for backend in candidates:
            refusal = backend.refusal(request)
            yield f"{option} {backend.name}", "can be chosen" if refusal is None else f"cannot be chosen: {refusal}"


def _subject() -> str:
    import torch

    return "bf16 on the GPU" if torch.cuda.is_available() else "float32 on the CPU"


def _operations() -> Iterator[tuple[str, Any, Any]]:
    """An option, its backends, and a request without padding, as training on packed text makes it."""
    import torch

    from torchscale_fairseq.core.ops.attention import AttentionRequest
    from torchscale_fairseq.core.ops.backends import ATTENTION
    from torchscale_fairseq.core.ops.retention_forms import RETENTION, RetentionRequest

    on_gpu = torch.cuda.is_available()
    x = torch.zeros(1, 16, 2, 64, device="cuda" if on_gpu else "cpu", dtype=torch.bfloat16 if on_gpu else torch.float32)
    plain = AttentionRequest(x, x, x, causal=True, block=0, key_padding_mask=None, bias=None, scale=1.0, dropout=0.0)
    yield "--attention-backend", ATTENTION, plain
    decay = torch.full((2,), -0.1, device=x.device)
    yield "--retention-backend", RETENTION, RetentionRequest(x, x, x, decay, False, 128, {})
