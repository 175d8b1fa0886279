"""Attention kernels with their log-sum-exp, forward and backward, and the choice between them.

The backward pass takes output and log-sum-exp as arguments. Given a kernel's own ones it is that of its softmax. Given
those of a softmax over more keys, of which the kernel saw some, it is their share of the larger one's gradient: this is
how parts of a softmax (LongNet's branches) are differentiated without keeping their scores.

Axes: batch, heads, seq, head_dim, as torch's kernels have them.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..option_error import not_among
from .backend import choose

HALF = (torch.float16, torch.bfloat16)
LARGEST_GRID = 65535
"""Rows of the batch that one launch of a CUDA kernel takes."""


@dataclass(frozen=True)
class Scores:
    """Treatment of the scores before and after their softmax."""

    causal: bool
    """A query sees keys up to its own position; as many queries as keys."""
    hidden: Tensor | None
    """True for keys that a query may not see; broadcastable to (batch, heads, queries, keys). Every query sees one."""
    scale: float
    dropout: float


class Partial(NamedTuple):
    """A softmax over some keys."""

    output: Tensor
    """(batch, heads, queries, head_dim)."""
    log_sum_exp: Tensor
    """(batch, heads, queries), float32 or, for float64 inputs, float64."""
    random: Any
    """The state from which the backward pass drops the weights that the forward pass dropped."""


class PartialRequest(NamedTuple):
    """Attention over some keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    scores: Scores


class Kernel(ABC):
    """One implementation, a ``Backend`` of ``PartialRequest``."""

    name: str

    @abstractmethod
    def refusal(self, request: PartialRequest) -> str | None:
        """Why it cannot serve such a request, if it cannot."""

    def run(self, request: PartialRequest) -> Partial:
        """Attention over all of the request's keys."""
        return self.forward(*request)

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Partial:
        """Attention over all of its keys."""

    @abstractmethod
    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Partial, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value.

        Args:
            gradient: of the output of the whole softmax; finite.
            query, key, value: as in the forward pass.
            whole: output and log-sum-exp of the whole softmax, +inf for queries to be left out; what is random is
                that of the forward pass.
            scores: as in the forward pass.
        """


class Naive(Kernel):
    """The definition, in float32 or, for float64 inputs, float64."""

    name = "naive"

    def refusal(self, request: PartialRequest) -> str | None:
        return None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Partial:
        logits = self._logits(query, key, scores)
        log_sum_exp = logits.logsumexp(-1)
        weights = self._weights(logits, log_sum_exp)
        kept = None
        if scores.dropout:
            kept = torch.rand_like(weights) >= scores.dropout
            weights = weights * kept / (1 - scores.dropout)
        return Partial((weights @ value.to(weights.dtype)).to(query.dtype), log_sum_exp, kept)

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Partial, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = self._weights(self._logits(query, key, scores), whole.log_sum_exp)
        wide = weights.dtype
        upstream = gradient.to(wide)
        of_weights = upstream @ value.to(wide).mT
        dropped = weights
        if whole.random is not None:
            dropped, of_weights = (x * whole.random / (1 - scores.dropout) for x in (weights, of_weights))
        of_logits = weights * (of_weights - (upstream * whole.output.to(wide)).sum(-1, keepdim=True)) * scores.scale
        parts = of_logits @ key.to(wide), of_logits.mT @ query.to(wide), dropped.mT @ upstream
        return parts[0].to(query.dtype), parts[1].to(key.dtype), parts[2].to(value.dtype)

    def _logits(self, query: Tensor, key: Tensor, scores: Scores) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        logits = (query.to(wide) * scores.scale) @ key.to(wide).mT
        if scores.causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(later, float("-inf"))
        return logits if scores.hidden is None else logits.masked_fill(scores.hidden, float("-inf"))

    def _weights(self, logits: Tensor, log_sum_exp: Tensor) -> Tensor:
        return (logits - log_sum_exp.unsqueeze(-1)).exp()


class FlashOnCPU(Kernel):
    """torch's for CPUs."""

    name = "flash attention for CPUs"

    def refusal(self, request: PartialRequest) -> str | None:
        return "has no dropout" if request.scores.dropout else None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Partial:
        output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
            query, key, value, 0.0, scores.causal, attn_mask=self._mask(query, scores), scale=scores.scale
        )
        return Partial(output, log_sum_exp, None)

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Partial, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
                gradient,
                query,
                key,
                value,
                whole.output,
                whole.log_sum_exp.contiguous(),
                0.0,
                scores.causal,
                attn_mask=self._mask(query, scores),
                scale=scores.scale,
            )
        )
        return parts

    def _mask(self, query: Tensor, scores: Scores) -> Tensor | None:
        return None if scores.hidden is None else _additive(scores.hidden, query.dtype)


class Flash(Kernel):
    """torch's flash attention for CUDA."""

    name = "flash attention"

    def refusal(self, request: PartialRequest) -> str | None:
        return _flash_refusal(request.query, request.scores)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Partial:
        output, log_sum_exp, *_, seed, offset, _ = torch.ops.aten._scaled_dot_product_flash_attention.default(
            *map(_in_eights, (query, key, value)), scores.dropout, scores.causal, scale=scores.scale
        )
        return Partial(output[..., : query.size(-1)], log_sum_exp, (seed, offset))

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Partial, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = torch.ops.aten._scaled_dot_product_flash_attention_backward.default(
            *map(_in_eights, (gradient, query, key, value, whole.output)),
            whole.log_sum_exp.contiguous(),
            None,
            None,
            query.size(2),
            key.size(2),
            scores.dropout,
            scores.causal,
            *whole.random,
            scale=scores.scale,
        )
        return _without_filling(parts, query)


class FlashAttnPackage(Kernel):
    """The package flash-attn."""

    name = "flash_attn"

    def refusal(self, request: PartialRequest) -> str | None:
        if importlib.util.find_spec("flash_attn") is None:
            return "needs the package flash-attn (pip install flash-attn)"
        return _flash_refusal(request.query, request.scores)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Partial:
        from flash_attn.flash_attn_interface import _wrapped_flash_attn_forward

        output, log_sum_exp, _, random = _wrapped_flash_attn_forward(
            *(_in_eights(x).transpose(1, 2) for x in (query, key, value)),
            scores.dropout,
            scores.scale,
            **self._options(scores),
            return_softmax=False,
        )
        return Partial(output.transpose(1, 2)[..., : query.size(-1)], log_sum_exp, random)

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Partial, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _wrapped_flash_attn_backward

        inputs = [_in_eights(x).transpose(1, 2) for x in (gradient, query, key, value, whole.output)]
        parts = [torch.empty_like(x) for x in inputs[1:4]]
        _wrapped_flash_attn_backward(
            *inputs,
            whole.log_sum_exp.contiguous(),
            *parts,
            scores.dropout,
            scores.scale,
            **self._options(scores),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            rng_state=whole.random,
        )
        return _without_filling([x.transpose(1, 2) for x in parts], query)

    def _options(self, scores: Scores) -> dict[str, Any]:
        return {
            "causal": scores.causal,
            "window_size_left": -1,
            "window_size_right": -1,
            "softcap": 0.0,
            "alibi_slopes": None,
        }


class Efficient(Kernel):
    """torch's memory-efficient attention for CUDA, which knows float32 and masks."""

    name = "memory-efficient attention"

    def refusal(self, request: PartialRequest) -> str | None:
        query, scores = request.query, request.scores
        if query.device.type != "cuda" or query.dtype not in (torch.float32, *HALF):
            return f"needs fp32, fp16 or bf16 on a GPU, not {query.dtype} on {query.device.type}"
        if query.size(0) > LARGEST_GRID and scores.dropout:
            return f"has no dropout for more than {LARGEST_GRID} rows ({query.size(0)})"
        return None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Partial:
        output, log_sum_exp, *random = torch.ops.aten._scaled_dot_product_efficient_attention.default(
            *map(_in_eights, (query, key, value)),
            self._mask(query, key, scores),
            True,
            scores.dropout,
            scores.causal,
            scale=scores.scale,
        )
        return Partial(output[..., : query.size(-1)], log_sum_exp[..., : query.size(2)], random)

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Partial, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        *parts, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default(
            *map(_in_eights, (gradient, query, key, value)),
            self._mask(query, key, scores),
            _token_by_token(_in_eights(whole.output)),
            # Rows of the log-sum-exp are as long as the kernel made them: multiples of its blocks of 32 queries.
            F.pad(whole.log_sum_exp, (0, -query.size(2) % 32), value=float("inf")).contiguous(),
            *whole.random,
            scores.dropout,
            [True, True, True, False],
            scores.causal,
            scale=scores.scale,
        )
        return _without_filling(parts, query)

    def _mask(self, query: Tensor, key: Tensor, scores: Scores) -> Tensor | None:
        """A mask of full shape, as a view of rows whose beginnings are aligned."""
        if scores.hidden is None:
            return None
        mask = F.pad(_additive(scores.hidden, query.dtype), (0, -key.size(2) % 16))[..., : key.size(2)]
        return mask.expand(*query.shape[:3], key.size(2))


NAIVE = Naive()
OF_TORCH: dict[str, Sequence[Kernel]] = {"cpu": (FlashOnCPU(), NAIVE), "cuda": (Flash(), Efficient(), NAIVE)}
"""By device, in order of preference."""
OF_OTHERS: list[Kernel] = [NAIVE, FlashAttnPackage()]
"""By the names of the option attention_backend."""


def choose_kernel(request: PartialRequest, backend: str) -> Kernel:
    """The kernel for a request.

    Args:
        request: what is to be computed.
        backend: naive; sdpa, torch's kernels, which are flash attention where it can be, otherwise the
            memory-efficient one on a GPU (float32, hidden keys), otherwise naive (float64 on a GPU, dropout on a
            CPU); or flash_attn, the package of that name.

    Raises:
        OptionError: there is no such kernel, or it cannot serve the request.
    """
    if backend == "sdpa":
        return choose(OF_TORCH.get(request.query.device.type, (NAIVE,)), request)
    names = [kernel.name for kernel in OF_OTHERS]
    if backend not in names:
        reason = " in dilated attention, which needs a log-sum-exp"
        raise not_among("attention_backend", backend, ["sdpa", *names], reason)
    return choose(OF_OTHERS, request, backend, option="attention_backend", instead="sdpa")


def _flash_refusal(query: Tensor, scores: Scores) -> str | None:
    if query.device.type != "cuda" or query.dtype not in HALF:
        return f"needs fp16 or bf16 on a GPU, not {query.dtype} on {query.device.type}"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    if scores.hidden is not None:
        return "cannot hide keys, as padding and segments that end early ask of attention that is not causal"
    if query.size(-1) > 256:
        return f"has heads of at most 256 channels ({query.size(-1)})"
    if query.size(0) > LARGEST_GRID:
        return f"takes at most {LARGEST_GRID} rows ({query.size(0)}); segments are that many"
    return None


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, float("-inf"))


def _in_eights(x: Tensor) -> Tensor:
    """With channels of zeros, up to a multiple of eight, which the kernels for CUDA ask for."""
    missing = -x.size(-1) % 8
    return F.pad(x, (0, missing)) if missing else x


def _token_by_token(x: Tensor) -> Tensor:
    """With all heads of a token next to each other. The memory-efficient kernel reads the output so, whatever its
    strides, as it writes it itself."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _without_filling(parts: Any, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = (x[..., : query.size(-1)] for x in parts)
    return of_query, of_key, of_value
