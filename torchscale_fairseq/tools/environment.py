"""Report the environment: versions, GPUs, optional packages, and the backends that can be chosen, with the reasons why
others cannot. Attach it to bug reports."""

import argparse
import importlib.util
import platform
import sys
from collections.abc import Iterable, Iterator

from torchscale_fairseq import __version__
from torchscale_fairseq.tools.packages import OPTIONAL, REQUIRED

EXAMPLE = "torchscale-fairseq environment"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace) -> None:
    show("versions", versions())
    show("packages", packages())
    if importlib.util.find_spec("torch") is not None:
        show("GPUs", gpus())
        show(f"backends, for {_subject()}", backends())


def show(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a part of the report."""
    print(title)
    for name, text in rows:
        print(f"  {name:<34} {text}")


def versions() -> Iterator[tuple[str, str]]:
    """Versions of this package, Python and the system."""
    yield "torchscale-fairseq", __version__
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()


def gpus() -> Iterator[tuple[str, str]]:
    """Name, memory and compute capability of each GPU that torch sees."""
    import torch

    cuda = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        yield "none", f"torch sees no GPU; it was built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        capability = f"compute capability {found.major}.{found.minor}"
        yield f"cuda:{index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {capability}"


def packages() -> Iterator[tuple[str, str]]:
    """Versions of packages, or how to install them."""
    for package in [*REQUIRED, *OPTIONAL]:
        yield package.distribution, package.version() or f"not installed: {package.install}"


def backends() -> Iterator[tuple[str, str]]:
    """Whether each backend of each operation serves a plain request of the best device here."""
    import torch

    from torchscale_fairseq.core.ops.probes import PROBES

    where = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    for option, (candidates, request) in PROBES.items():
        for backend in candidates:
            refusal = backend.refusal(request(torch.device(where[0]), where[1]))
            answer = "can be chosen" if refusal is None else f"cannot be chosen: {refusal}"
            yield f"--{option.replace('_', '-')} {backend.name}", answer


def _subject() -> str:
    import torch

    return "bf16 on the GPU" if torch.cuda.is_available() else "float32 on the CPU"
