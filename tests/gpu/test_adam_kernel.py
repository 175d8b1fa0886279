"""The kernel that updates float32 copies and their parameters in half precision, against Adam and copying."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("fairseq")
pytest.importorskip("triton")

from tests.gpu.kernels import DEVICE, KERNELS_RUN
from tests.helpers import assert_close
from torchscale_fairseq.core.ops import adam_kernel
from torchscale_fairseq.core.ops.adam_kernel import Rates, update_from_halves
from torchscale_fairseq.optim import fused_adam_torch
from torchscale_fairseq.optim.fused_adam_torch import FusedAdam

pytestmark = KERNELS_RUN
BETAS, EPS, DECAY, LR = (0.9, 0.98), 1e-6, 0.1, 0.05
ALIGNED, MIXED = [(70, 48), (16,), (3, 4, 2), (1, 4096), (4104,)], [(7, 5), (1,), (4097,), (9, 1024)]


States = tuple[list[Tensor], list[Tensor], list[Tensor]]


def sides(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], States]:
    """Parameters in half precision with gradients; their copies, averages and squares."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    draws = [[torch.randn(s, generator=generator, device=DEVICE) for s in shapes] for _ in range(4)]
    halves = [x.to(dtype) for x in draws[0]]
    for half, gradient in zip(halves, draws[1], strict=True):
        half.grad = gradient.to(dtype)
    return halves, ([half.float() for half in halves], draws[2], [x.square() for x in draws[3]])


def reference(halves: list[Tensor], states: States, update: int, scale: Tensor | None = None) -> list[Tensor]:
    """Copies after the update, by torch in float64."""
    found = []
    for half, copy, average, square in zip(halves, *states, strict=True):
        assert half.grad is not None
        p, m, v, g = (x.double() for x in (copy, average, square, half.grad))
        g = g if scale is None else g / scale.double()
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        size = LR * (1 - BETAS[1] ** update) ** 0.5 / (1 - BETAS[0] ** update)
        found.append(p - LR * DECAY * p - size * m / (v.sqrt() + EPS))
    return found


def rates(update: int) -> Rates:
    size = LR * (1 - BETAS[1] ** update) ** 0.5 / (1 - BETAS[0] ** update)
    return Rates(*BETAS, decay=LR * DECAY, step=size, eps=EPS)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [ALIGNED, MIXED], ids=["aligned", "mixed"])
def test_update(shapes: list[tuple[int, ...]], dtype: torch.dtype, scaled: bool) -> None:
    halves, states = sides(shapes, dtype)
    scale = torch.tensor(3.7, device=DEVICE) if scaled else None
    expected = reference(halves, states, 3, scale)
    update_from_halves(halves, *states, rates(3), scale)
    for half, copy, wanted in zip(halves, states[0], expected, strict=True):
        assert_close(copy, wanted.float(), "float32")
        assert_close(half, copy.to(dtype), str(dtype).removeprefix("torch."))
        assert DEVICE == "cpu" or torch.equal(half, copy.to(dtype))  # the interpreter cuts bfloat16 off


def test_an_update_that_is_left_out_changes_nothing() -> None:
    halves, states = sides(ALIGNED, torch.bfloat16)
    before = [x.clone() for x in (*halves, *states[0], *states[1], *states[2])]
    update_from_halves(halves, *states, rates(3), found_inf=torch.ones((), device=DEVICE))
    for found, wanted in zip((*halves, *states[0], *states[1], *states[2]), before, strict=True):
        assert torch.equal(found, wanted)


def test_addresses_that_change_are_sent_again() -> None:
    """Gradients of updates that are not recorded lie elsewhere each time."""
    for _ in range(2):
        halves, states = sides(ALIGNED, torch.bfloat16)
        expected = reference(halves, states, 1)
        update_from_halves(halves, *states, rates(1))
        assert_close(states[0][0], expected[0].float(), "float32")
        kept = halves, states  # so that the next ones get other memory
    assert kept and adam_kernel._table.cache_info().currsize >= 2


@pytest.mark.parametrize("flat", [False, True])
def test_updates_are_those_of_copies_with_gradients(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five updates of FusedAdam by its own gradients in float32, and from halves, also of one copy for all."""
    monkeypatch.setattr(fused_adam_torch, "DEVICES", (DEVICE,))
    options: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    generator = torch.Generator(DEVICE).manual_seed(2)
    halves, _ = sides(MIXED, torch.bfloat16)
    usual = [half.float().requires_grad_() for half in halves]
    copies = [torch.cat([u.detach().flatten() for u in usual])] if flat else [u.detach().clone() for u in usual]
    expected, found = FusedAdam(usual, **options), FusedAdam(copies, **options)
    for _ in range(5):
        for half, u in zip(halves, usual, strict=True):
            half.grad = torch.randn(half.shape, generator=generator, device=DEVICE).bfloat16()
            u.grad = half.grad.float()
        assert found.take_halves({copies[0]: halves} if flat else {c: [h] for c, h in zip(copies, halves, strict=True)})
        for optimizer in (expected, found):
            optimizer.step(scale=torch.tensor(2.0, device=DEVICE))
    for half, u in zip(halves, usual, strict=True):
        assert_close(half, u.detach().bfloat16(), "bfloat16")
    ours, theirs = ([s["exp_avg"].flatten() for s in o.state.values()] for o in (found, expected))
    assert_close(torch.cat(ours), torch.cat(theirs), "float32")
    assert all(state["step"] == 5 for state in found.state.values())
