"""Dilated attention as the cases describe it, and where the official code computes the function of its paper."""

import torch.nn.functional as F
from torch import Tensor

from tests.parity.vectors import Case
from torchscale_fairseq import dilated_attention


def branches(case: Case, length: int) -> list[tuple[int, int]]:
    """Segment length and dilation ratio of each branch; the official code cuts segments to the sequence."""
    config = case.meta["config"]
    pairs = zip(config["segment_length"], config["dilated_ratio"], strict=True)
    return [(min(segment, length), ratio) for segment, ratio in pairs]


def shifted_from(case: Case, length: int) -> int:
    """First position that may differ in a causal model: the official code shifts the segments after the first where a
    ratio does not divide the segment length."""
    return min([s for s, ratio in branches(case, length) if s < length and s % ratio], default=length)


def whole_until(case: Case, length: int, real: int) -> int:
    """Positions of a bidirectional model that see tokens only: official queries also attend to padding, and to the
    zeros that fill up the last segment.

    Args:
        length: of the padded batch.
        real: tokens of the row.
    """
    if shifted_from(case, length) < length:
        return 0
    end = real
    while end and any(end % segment for segment, _ in branches(case, length)):
        end -= 1
    return end


def dilated_layer(case: Case, x: Tensor, parameters: dict[str, Tensor], *, causal: bool) -> Tensor:
    """The official layer around it: projections, inner norm if there is one, output projection."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    config, heads = case.meta["config"], case.meta["build"]["heads"]
    branches = config["segment_length"], config["dilated_ratio"]
    query, key, value = (linear(f"{part}_proj", x).unflatten(-1, (heads, -1)) for part in "qkv")
    mixed = dilated_attention(query, key, value, *branches, causal=causal, torchscale_compatible=True).flatten(2)
    if "inner_attn_ln.weight" in parameters:
        norm = parameters["inner_attn_ln.weight"], parameters["inner_attn_ln.bias"]
        mixed = F.layer_norm(mixed, (x.size(-1),), *norm, eps=config["layernorm_eps"])
    return linear("out_proj", mixed)
