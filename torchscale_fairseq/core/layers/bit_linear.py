"""BitNet's linear layers: quantised in each forward pass, so that they can be trained, or packed.

BitNet, arXiv:2310.11453, sec. 2.1 and "The Era of 1-bit LLMs", arXiv:2402.17764, sec. 2. Each begins with a norm of its
own and has no bias.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.grouped import grouped_linear
from ..ops.quantization import (
    Quantized,
    pack,
    packed_width,
    quantize_activations,
    quantize_weight,
    straight_through,
    unpack,
)
from ..ops.segments import Segments
from ..ops.ternary_linear import TernaryLinear, has_kernel, ternary_linear
from ..parallel.groups import ExpertSplit
from .grouped import GroupedLinear, GroupedNorm
from .hooked import is_hooked
from .norm import build_norm


@dataclass(frozen=True)
class BitKind:
    """Settings that the BitNet layers of one model share."""

    scheme: str
    """b1.58 or b1, of the weights."""
    recipe: str
    """faq or paper (``ops.quantization``)."""
    eps: float
    """Epsilon of the norms."""
    packed: bool = False
    """Weights are stored in bytes, and cannot be trained."""

    @property
    def norm(self) -> str:
        """Kind of the norms: b1's paper has LayerNorm, what came later RMSNorm."""
        return "layernorm" if (self.scheme, self.recipe) == ("b1", "paper") else "rmsnorm"

    def linear(
        self, in_features: int, out_features: int, *, bias: bool = True, activated: bool = False
    ) -> "BitLinear | PackedBitLinear":
        """As ``LinearFactory``."""
        make = PackedBitLinear if self.packed else BitLinear
        return make(in_features, out_features, self, activated=activated)

    def grouped_linear(
        self, split: ExpertSplit, in_features: int, out_features: int, *, bias: bool, activated: bool = False
    ) -> "BitGroupedLinear | PackedBitGroupedLinear":
        """Build the linear layer of several experts."""
        make = PackedBitGroupedLinear if self.packed else BitGroupedLinear
        return make(split, in_features, out_features, self, activated=activated)

    def eight_bits(self, x: Tensor, *, activated: bool, training: bool) -> Tensor:
        """Round a layer's normalised input."""
        as_in_b1 = (self.scheme, self.recipe) == ("b1", "paper")
        quantized = quantize_activations(
            x, self.recipe, shared_scale=as_in_b1 and training, from_minimum=as_in_b1 and activated
        )
        return straight_through(x, quantized.real())

    def few_values(self, weight: Tensor) -> Tensor:
        """Round weights that are trained."""
        return straight_through(weight, quantize_weight(weight, self.scheme).real())


class BitLinear(nn.Linear):
    """A linear layer whose product is of quantised weights and activations.

    Args:
        in_features, out_features: widths.
        kind: scheme and recipe.
        activated: a non-linearity follows.
    """

    def __init__(self, in_features: int, out_features: int, kind: BitKind, *, activated: bool = False):
        super().__init__(in_features, out_features, bias=False)
        self.kind, self.activated = kind, activated
        self.norm = build_norm(kind.norm, in_features, kind.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        x = self.kind.eight_bits(self.norm(x), activated=self.activated, training=self.training)
        return F.linear(x, self.kind.few_values(self.weight))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind.scheme}, {self.kind.recipe}"


class BitGroupedLinear(GroupedLinear):
    """BitLinear layers of several experts. Arguments as for BitLinear, after the split."""

    def __init__(
        self, split: ExpertSplit, in_features: int, out_features: int, kind: BitKind, *, activated: bool = False
    ):
        super().__init__(split, in_features, out_features, bias=False)
        self.kind, self.activated = kind, activated
        self.norm = GroupedNorm(split, kind.norm, in_features, kind.eps)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(rows, in) to (rows, out), whose segments are those of the local experts."""
        x = self.kind.eight_bits(self.norm(x, segments), activated=self.activated, training=self.training)
        return grouped_linear(x, self.kind.few_values(self.weight), None, segments)


class PackedWeight(nn.Module):
    """Quantised weights in bytes.

    Args:
        shape: (..., out, in).
        scheme: b1.58, in 1.6 bits a weight, or b1, in one.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, *shape: int, scheme: str):
        super().__init__()
        self.scheme, self.width = scheme, shape[-1]
        self.register_buffer("packed", torch.zeros(*shape[:-1], packed_width(self.width, scheme), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(*shape[:-2], 1, 1))

    @staticmethod
    def contents(weight: Tensor, scheme: str) -> dict[str, Tensor]:
        """The two buffers for trained weights."""
        values, scale = quantize_weight(weight, scheme)
        return {"packed": pack(values, scheme), "scale": scale}

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The weights, in that dtype.

        Raises:
            ValueError: in training.
        """
        if self.training:
            raise ValueError("bitnet_packed weights cannot be trained; train from the checkpoint that was packed.")
        return Quantized(unpack(self.packed, self.scheme, self.width, dtype), self.scale.to(dtype)).real()


class PackedBitLinear(nn.Module):
    """BitLinear with packed weights. Arguments as for BitLinear.

    On a GPU a kernel multiplies few rows by ternary weights as they are; all other products unpack the weights.
    """

    def __init__(self, in_features: int, out_features: int, kind: BitKind, *, activated: bool = False):
        super().__init__()
        self.kind, self.activated = kind, activated
        self.weight = PackedWeight(out_features, in_features, scheme=kind.scheme)
        self.norm = build_norm(kind.norm, in_features, kind.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        parameters = self.ternary(x)
        if parameters is not None:
            return ternary_linear(x, [parameters], self.kind.eps, self.kind.recipe)[0]
        weight = self.weight(x.dtype)
        return F.linear(self.kind.eight_bits(self.norm(x), activated=self.activated, training=False), weight)

    def ternary(self, x: Tensor) -> TernaryLinear | None:
        """Parameters for the kernel; None if it does not serve this layer and input."""
        weight, norm = self.weight, self.norm
        if self.kind.scheme != "b1.58" or self.training or is_hooked(weight) or is_hooked(norm):
            return None
        if type(norm) is nn.RMSNorm and has_kernel(x, norm.weight):
            return TernaryLinear(norm.weight, weight.packed, weight.scale)
        return None


def at_once(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...] | None:
    """Products of one input with up to three layers of one model by one launch; None if no kernel serves them all.

    Args:
        x: (..., in_features).
        layers: of any kind and size.

    Returns:
        (..., out_features) of each layer.
    """
    packed = [layer for layer in layers if type(layer) is PackedBitLinear and not is_hooked(layer)]
    parameters = [found for found in (layer.ternary(x) for layer in packed) if found is not None]
    if len(parameters) < len(layers) or any(one.packed.shape != parameters[0].packed.shape for one in parameters):
        return None
    return ternary_linear(x, parameters, packed[0].kind.eps, packed[0].kind.recipe)


class PackedBitGroupedLinear(nn.Module):
    """BitGroupedLinear with packed weights, which cannot be trained. Arguments as for BitGroupedLinear."""

    def __init__(
        self, split: ExpertSplit, in_features: int, out_features: int, kind: BitKind, *, activated: bool = False
    ):
        super().__init__()
        self.kind, self.activated = kind, activated
        self.weight = PackedWeight(split.local, out_features, in_features, scheme=kind.scheme)
        self.norm = GroupedNorm(split, kind.norm, in_features, kind.eps)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(rows, in) to (rows, out), whose segments are those of the local experts."""
        weight = self.weight(x.dtype)
        x = self.kind.eight_bits(self.norm(x, segments), activated=self.activated, training=False)
        return grouped_linear(x, weight, None, segments)
