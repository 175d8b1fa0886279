"""How long an update computes and how long it communicates: the model behind docs/scaling.md."""

from dataclasses import dataclass

NVLINK = 350e9
"""Bytes per second and GPU within a node, each way: what NCCL reaches of the 450e9 of an H100."""
NETWORK = 45e9
"""Between nodes, per GPU with an adapter of its own of 400 Gbit/s."""
PER_NODE = 8
RATE = 0.4 * 989e12
"""FLOP/s per GPU that an update reaches while it computes."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a GPU receives in an update."""

    within: float
    """Bytes from GPUs of its own node."""
    between: float = 0.0
    """Bytes from GPUs of other nodes."""

    @property
    def seconds(self) -> float:
        """Time on the links, which work at the same time."""
        return max(self.within / NVLINK, self.between / NETWORK)


def ddp_traffic(parameters: float, gpus: int, *, gradient_bytes: int = 2) -> Traffic:
    """Gradients are summed: by a ring, whose slowest link counts."""
    amount = 2 * (gpus - 1) / gpus * gradient_bytes * parameters
    return Traffic(amount, amount if gpus > PER_NODE else 0.0)


def sharded_traffic(
    parameters: float, gpus: int, *, shard_size: int = 0, compute_bytes: int = 2, gradient_bytes: int = 2
) -> Traffic:
    """Layers are gathered for the forward and again for the backward pass, and gradients are summed and cut.

    Args:
        parameters: of the model.
        gpus: all of them.
        shard_size: that hold a copy together; 0: all.
        compute_bytes: of a gathered parameter.
        gradient_bytes: of a gradient that is summed.
    """
    size = shard_size or gpus
    amount = (size - 1) / size * (2 * compute_bytes + gradient_bytes) * parameters
    replicas = gpus // size
    of_replicas = 2 * (replicas - 1) / replicas * gradient_bytes * parameters / size
    return Traffic(amount, (amount if size > PER_NODE else 0.0) + of_replicas)


def expert_traffic(tokens: int, width: int, layers: int, gpus: int, *, top_k: int = 2) -> Traffic:
    """Rows go to their experts and back, in the forward and in the backward pass of each layer with experts.

    Args:
        tokens: per GPU.
        width: of the model.
        layers: with experts.
        gpus: that hold the experts.
        top_k: experts per token.
    """
    rows = 4.0 * layers * top_k * tokens * width * 2
    elsewhere = max(gpus - PER_NODE, 0) / gpus
    return Traffic(rows * (min(gpus, PER_NODE) - 1) / gpus, rows * elsewhere)


def compute_seconds(parameters: float, tokens: int, *, recompute: bool = True) -> float:
    """Seconds of computation of an update with this many tokens per GPU, attention's scores left out."""
    return (8 if recompute else 6) * parameters * tokens / RATE
