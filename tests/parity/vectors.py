"""Golden vectors of the official implementation, read from ``helpers.parity_dir()``.

Shapes, options and settings are each file's own: nothing in tests/parity may know them, so that another set of files
with the same names runs through the same tests (``other_vectors.py`` writes one).
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers import assert_close, assert_gradient_close, parity_dir


@dataclass(frozen=True)
class Case:
    """One file of vectors."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def meta(self) -> dict[str, Any]:
        with safe_open(self.path, "pt") as f:
            return {k: json.loads(v) if v[:1] in '{["' else v for k, v in f.metadata().items()}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118

    @property
    def options(self) -> dict[str, Any]:
        """What the model was built with: all attributes of its config, then what was passed."""
        return {**self.meta.get("config", {}), **self.meta["config_kwargs"]}

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below a prefix, without it."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def state(self) -> dict[str, Tensor]:
        """The state dict, tied parameters under each of their names."""
        state = {**self.group("param/"), **self.group("buffer/")}
        tied = self.meta["extra"].get("tied", {})
        return {**state, **{name: state[owner] for name, owner in tied.items()}}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)


def write_case(path: Path, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Case:
    """Write a file of vectors in the form of the official ones."""
    metadata = {"extra": {}, "config_kwargs": {}, "build": {}, **meta}
    contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {name: json.dumps(value) for name, value in metadata.items()})
    return Case(path)


def cases(pattern: str, *, without: tuple[str, ...] = ()) -> list[Case]:
    """All cases whose file name matches, so that a new vector is tested without touching the tests."""
    found = [Case(p) for p in sorted(parity_dir().glob(f"{pattern}.safetensors"))]
    return [c for c in found if not any(word in c.name for word in without)]


def ids(found: list[Case]) -> list[str]:
    return [c.name for c in found]


def compare(case: Case, found: dict[str, Tensor], tolerance: str = "parity", keep: Tensor | None = None) -> None:
    """Compare outputs with those of the case that have their names, of which there must be one.

    Args:
        keep: (batch, seq), true at positions that count; None for all.
    """
    stored = {name: case.get(f"out/{name}") for name in found}
    assert any(expected is not None for expected in stored.values()), f"{case.name} has none of {', '.join(found)}"
    for name, expected in stored.items():
        if expected is not None:
            actual = found[name].detach()
            pair = (actual, expected) if keep is None else (actual[keep], expected[keep])
            assert_close(*pair, tolerance, name)


def balance_weight(case: Case) -> float:
    """Factor of the balance loss in the case's loss, as in "mean((out-target)^2) + 0.1*sum(l_aux)"."""
    match = re.search(r"([\d.]+) ?\* ?(?:sum\()?l_aux", case.meta["extra"]["loss"])
    assert match, case.meta["extra"]["loss"]
    return float(match[1])


def loss_of(case: Case, output: Tensor, balance: Tensor | None = None) -> Tensor:
    """Mean squared error over kept positions, as INDEX.md of the vectors defines it, and the weighted balance loss."""
    loss = (output - case["in/loss_target"])[case["in/loss_keep"]].square().mean()
    return loss if balance is None else loss + balance_weight(case) * balance


def gradients_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Gradients under the names of the state dict, those of experts apart."""
    found: dict[Any, Any] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.grad is None:
            continue
        before, experts, rest = name.rpartition("experts.")
        if experts and not rest[0].isdigit():  # all experts' parameters in one
            found |= {f"{before}experts.{index}.{rest}": g for index, g in enumerate(parameter.grad)}
        else:
            found[name] = parameter.grad
    return found


def check_gradients(case: Case, found: dict[str, Tensor]) -> None:
    """Compare gradients, and the norms of those that are not stored."""
    expected = case.group("grad/")
    assert expected
    for name, gradient in expected.items():
        assert_gradient_close(found[name], gradient, name)
    for name, norm in case.meta["extra"].get("grad_norms", {}).items():
        actual = found[name].norm().item() if name in found else 0.0
        torch.testing.assert_close(actual, norm or 0.0, rtol=1e-3, atol=1e-6, msg=name)


def check_loss_and_gradients(case: Case, model: nn.Module, output: Tensor, balance: Tensor | None = None) -> None:
    """Compare the loss of these outputs and its gradients."""
    loss = loss_of(case, output, balance)
    assert_close(loss.detach(), case["out/loss"].squeeze(), "parity", "loss")
    model.zero_grad()
    loss.backward()
    check_gradients(case, gradients_by_name(model))
