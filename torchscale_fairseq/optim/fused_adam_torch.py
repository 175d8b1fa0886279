"""``--optimizer fused_adam_torch``: fairseq's ``adam`` by torch's own fused and foreach kernels, without apex.

The arithmetic is that of ``fairseq.optim.adam.Adam``: weight decay scaled by the learning rate and applied first, as
in AdamW (arXiv:1711.05101), and epsilon added to the square root of the uncorrected second moment (arXiv:1412.6980,
end of sec. 2). torch adds it to the corrected one, so that its kernel gets epsilon / sqrt(1 - beta2^step). States have
fairseq's names and types, so that a checkpoint of either optimizer is resumed by the other.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.optim import FairseqOptimizer, fused_adam, register_optimizer
from fairseq.optim.adam import FairseqAdam
from omegaconf import II
from torch import Tensor

from torchscale_fairseq.core.ops.gelu_norm import TRITON
from torchscale_fairseq.hooks.patching import replace

if TRITON:
    from torchscale_fairseq.core.ops.adam_kernel import Rates, update_from_halves

KERNELS = ("fused", "foreach")
HALF = (torch.float16, torch.bfloat16)
DEVICES = ("cuda",)
"""Kinds of devices on which one kernel updates copies and what they are of."""
HALF_AT_ONCE = 2**24
"""Entries of half-precision parameters that have copies in float32 at a time, unless one parameter alone has more."""


@dataclass
class FusedAdamOptions(FairseqDataclass):
    """As those of ``adam``."""

    adam_betas: Any = field(default=(0.9, 0.999), metadata={"help": "decay rates of Adam's two moments"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon of Adam"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    adam_kernel: ChoiceEnum(KERNELS) = field(  # type: ignore[valid-type]
        default="fused",
        metadata={"help": "kernel of the update: fused, or foreach (operations over lists of parameters)"},
    )
    lr: list[float] = II("optimization.lr")  # noqa: RUF009 - a string


@register_optimizer("fused_adam_torch", dataclass=FusedAdamOptions)
class FairseqFusedAdam(FairseqAdam):
    """fairseq's side of :class:`FusedAdam`."""

    def __init__(self, cfg: Any, params: Iterable[Tensor]):
        FairseqOptimizer.__init__(self, cfg)
        self._optimizer = FusedAdam(params, kernel=str(cfg.adam_kernel), **self.optimizer_config)


def use_for_adam(stock: Callable[[], Any]) -> Callable[[], Any]:
    """``fairseq.optim.fused_adam.get_fused_adam_class``, which finds apex's or nothing: on a GPU ``--optimizer adam``
    is then :class:`FusedAdam` too, unless ``--use-old-adam`` is given."""

    def get_fused_adam_class() -> Any:
        return stock() or (_for_adam if torch.cuda.is_available() else None)

    return get_fused_adam_class


def _for_adam(params: Iterable[Tensor], use_fp16_stats: bool, **options: Any) -> "FusedAdam":
    if use_fp16_stats:
        raise NotImplementedError("--fp16-adam-stats needs NVIDIA's apex (docs/stock_repairs.md); drop that option.")
    return FusedAdam(params, **options)


replace(fused_adam, "get_fused_adam_class", use_for_adam)
FairseqFusedAdam.__name__ = FairseqAdam.__name__  # by which fairseq tells whether a checkpoint's states fit


@dataclass
class _Batch:
    """Parameters that one call of a kernel updates, with what it needs of each."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    averages: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    halves: list[Tensor] = field(default_factory=list)
    """Parameters in half precision, with gradients, of which ``params`` are the copies; or none."""


class FusedAdam(torch.optim.Optimizer):
    """Adam as fairseq has it.

    Parameters in float16 and bfloat16 (--memory-efficient-fp16) have their states in float32, and are updated in
    float32. Gradients may be scaled: ``step`` divides them by ``scale``. As with torch's own fused optimizers, a caller
    may set ``found_inf``, a float32 scalar on the device; where it is not 0, the next step changes nothing but the
    number of updates, which ``take_back`` sets back. Parameters may be copies of others (``take_halves``).

    Args:
        params: tensors, or groups of them.
        lr: learning rate.
        betas: decays of the averages of gradients and of their squares.
        eps: epsilon.
        weight_decay: share of a parameter taken off per update, relative to the learning rate.
        kernel: one of KERNELS.
    """

    supports_memory_efficient_fp16 = True
    supports_flat_params = True
    supports_step_with_scale = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        kernel: str = "fused",
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._update = {"fused": _fused, "foreach": _foreach}[kernel]
        self.found_inf: Tensor | None = None
        self.halves: dict[Tensor, list[Tensor]] = {}
        self._counted: list[dict[str, Any]] = []

    @property
    def can_skip(self) -> bool:
        """Whether ``found_inf`` is heeded."""
        return self._update is _fused

    def take_halves(self, halves: dict[Tensor, list[Tensor]]) -> bool:
        """Whether the next step will read the gradients of others in half precision, and write these too. If not, the
        parameters need gradients.

        Args:
            halves: by parameter, the tensors that it is a copy of, one after the other.
        """
        self.halves = halves if self.can_skip and _have_kernel(halves) else {}
        return bool(self.halves)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, scale: float | Tensor = 1.0) -> Any:
        """Update the parameters that have gradients.

        Args:
            closure: computes the loss, and gradients anew.
            scale: a number, or a scalar on the device, by which gradients are too large.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf, self.found_inf = self.found_inf, None
        self._counted = []
        for group in self.param_groups:
            for step, batch in self._batches(group["params"]):
                update = _from_halves if batch.halves else self._update
                update(batch, step, group, scale, found_inf)
        return loss

    def take_back(self) -> None:
        """Do not count the last step, which ``found_inf`` kept from changing anything."""
        for state in self._counted:
            state["step"] -= 1
        self._counted = []

    def _batches(self, params: list[Tensor]) -> Iterator[tuple[int, _Batch]]:
        """Parameters by device, type and number of their updates, that number with this one first."""
        alike: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = defaultdict(list)
        for p in params:
            if p.grad is None and p not in self.halves:
                continue
            if p.grad is not None and p.grad.is_sparse:
                raise RuntimeError(
                    "--optimizer fused_adam_torch does not take sparse gradients; use --optimizer adagrad."
                )
            state = self._state(p)
            state["step"] += 1
            self._counted.append(state)
            alike[p.device, p.dtype, int(state["step"])].append(p)
        for (_, dtype, step), members in alike.items():
            if self.halves:
                yield step, self._batch_of_halves(members)
                continue
            if dtype not in HALF:
                yield step, self._batch(members)
                continue
            for part in _parts(members):
                batch = self._batch(part)
                batch.params = [p.float() for p in part]
                yield step, batch
                torch._foreach_copy_(part, batch.params)

    def _state(self, p: Tensor) -> dict[str, Any]:
        """States in the type and place of updates; those of a checkpoint may be elsewhere."""
        state = self.state[p]
        dtype = torch.float32 if p.dtype in HALF else p.dtype
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype)
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].dtype != dtype or state[name].device != p.device:
                state[name] = state[name].to(p.device, dtype)
        return state

    def _batch(self, params: list[Tensor]) -> _Batch:
        states = [self.state[p] for p in params]
        averages, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        grads = [_laid_out_as(average, p.grad) for average, p in zip(averages, params, strict=True)]
        return _Batch(params, grads, averages, squares)

    def _batch_of_halves(self, params: list[Tensor]) -> _Batch:
        batch = _Batch()
        for p in params:
            halves, state = self.halves[p], self.state[p]
            batch.halves += halves
            batch.params += _cut(p.detach(), halves)
            batch.averages += _cut(state["exp_avg"], halves)
            batch.squares += _cut(state["exp_avg_sq"], halves)
        return batch


def _have_kernel(halves: dict[Tensor, list[Tensor]]) -> bool:
    """Whether one kernel can update parameters from gradients in half precision."""
    dtypes = {half.dtype for parts in halves.values() for half in parts}
    return TRITON and len(dtypes) == 1 and dtypes <= set(HALF) and all(_fits(p, parts) for p, parts in halves.items())


def _fits(p: Tensor, halves: list[Tensor]) -> bool:
    """Whether a copy and what it is of lie in memory as the kernel reads them."""
    return (
        p.device.type in DEVICES
        and p.dtype == torch.float32
        and p.is_contiguous()
        and all(half.is_contiguous() for half in halves)
        and all(half.grad is not None and half.grad.is_contiguous() for half in halves)
    )


def _cut(tensor: Tensor, halves: list[Tensor]) -> tuple[Tensor, ...]:
    """The parts of a copy, or of its states, one after the other."""
    return (tensor,) if len(halves) == 1 else tensor.view(-1).split([half.numel() for half in halves])


def _laid_out_as(model: Tensor, grad: Tensor | None) -> Tensor:
    """A gradient in the type and memory format of a state, which the fused kernels take for granted."""
    assert grad is not None
    if grad.dtype == model.dtype and grad.stride() == model.stride():
        return grad
    return torch.empty_like(model).copy_(grad)


def _parts(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of parameters with at most HALF_AT_ONCE entries each."""
    part: list[Tensor] = []
    for p in params:
        if part and sum(q.numel() for q in part) + p.numel() > HALF_AT_ONCE:
            yield part
            part = []
        part.append(p)
    yield part


def _fused(batch: _Batch, step: int, group: dict[str, Any], scale: float | Tensor, found_inf: Tensor | None) -> None:
    beta1, beta2 = group["betas"]
    device = batch.params[0].device
    now = torch.full((), float(step), device=device)
    torch._fused_adamw_(
        batch.params,
        batch.grads,
        batch.averages,
        batch.squares,
        [],
        [now] * len(batch.params),
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"] / math.sqrt(1 - beta2**step),
        amsgrad=False,
        maximize=False,
        grad_scale=_on_device(scale, device),
        found_inf=found_inf,
    )


def _from_halves(
    batch: _Batch, step: int, group: dict[str, Any], scale: float | Tensor, found_inf: Tensor | None
) -> None:
    (beta1, beta2), lr = group["betas"], group["lr"]
    rates = Rates(
        beta1,
        beta2,
        decay=lr * group["weight_decay"],
        step=lr * math.sqrt(1 - beta2**step) / (1 - beta1**step),
        eps=group["eps"],
    )
    scale_on_device = _on_device(scale, batch.params[0].device)
    update_from_halves(batch.halves, batch.params, batch.averages, batch.squares, rates, scale_on_device, found_inf)


def _on_device(scale: float | Tensor, device: torch.device) -> Tensor | None:
    """A scale as torch's kernels take it; None for 1."""
    if isinstance(scale, Tensor):
        return scale.to(device, torch.float32)
    return None if scale == 1.0 else torch.full((), scale, device=device)


def _foreach(batch: _Batch, step: int, group: dict[str, Any], scale: float | Tensor, found_inf: Tensor | None) -> None:
    assert found_inf is None
    (beta1, beta2), lr = group["betas"], group["lr"]
    if isinstance(scale, Tensor) or scale != 1.0:
        torch._foreach_div_(batch.grads, scale)
    torch._foreach_mul_(batch.averages, beta1)
    torch._foreach_add_(batch.averages, batch.grads, alpha=1 - beta1)
    torch._foreach_mul_(batch.squares, beta2)
    torch._foreach_addcmul_(batch.squares, batch.grads, batch.grads, value=1 - beta2)
    divisors = torch._foreach_sqrt(batch.squares)
    torch._foreach_add_(divisors, group["eps"])
    if group["weight_decay"]:
        torch._foreach_mul_(batch.params, 1 - lr * group["weight_decay"])
    torch._foreach_addcdiv_(
        batch.params, batch.averages, divisors, value=-lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    )
