"""Golden vectors of the official implementation, read from ``helpers.parity_dir()``."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tests.helpers import assert_gradient_close, parity_dir


@dataclass(frozen=True)
class Case:
    """One file of vectors."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def meta(self) -> dict:
        with safe_open(self.path, "pt") as f:
            return {k: json.loads(v) if v[:1] in '{["' else v for k, v in f.metadata().items()}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below a prefix, without it."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)


def cases(pattern: str, *, without: tuple[str, ...] = ()) -> list[Case]:
    """All cases whose file name matches, so that a new vector is tested without touching the tests."""
    found = [Case(p) for p in sorted(parity_dir().glob(f"{pattern}.safetensors"))]
    return [c for c in found if not any(word in c.name for word in without)]


def check_loss_and_gradients(case: Case, model: nn.Module, output: Tensor) -> None:
    """Mean squared error over kept positions, as INDEX.md of the vectors defines it, and its gradients."""
    keep, target = case["in/loss_keep"], case["in/loss_target"]
    loss = (output - target)[keep].square().mean()
    torch.testing.assert_close(loss, case["out/loss"].squeeze(), atol=1e-5, rtol=1e-5)
    model.zero_grad()
    loss.backward()
    gradients = case.group("grad/")
    assert gradients
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, expected in gradients.items():
        assert_gradient_close(parameters[name].grad, expected, name)
    for name, norm in case.meta["extra"]["grad_norms"].items():
        if norm is None:
            assert parameters[name].grad is None or parameters[name].grad.norm() == 0, name
        else:
            torch.testing.assert_close(parameters[name].grad.norm().item(), norm, rtol=1e-3, atol=1e-6, msg=name)
