"""Feed-forward networks, and experts made of them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}


class set_torch_seed:
    """Draw from a seed of its own in a ``with`` block.

    Args:
        seed: a whole number.
    """

    def __init__(self, seed: int):
        assert isinstance(seed, int)
        self.rng_state = self.get_rng_state()
        torch.manual_seed(seed)

    def get_rng_state(self) -> dict[str, Any]:
        """The generators' states."""
        state: dict[str, Any] = {"torch_rng_state": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda_rng_state"] = torch.cuda.get_rng_state()
        return state

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Restore the generators."""
        torch.set_rng_state(state["torch_rng_state"])
        if "cuda_rng_state" in state:
            torch.cuda.set_rng_state(state["cuda_rng_state"])

    def __enter__(self) -> "set_torch_seed":
        return self

    def __exit__(self, *exc: object) -> None:
        self.set_rng_state(self.rng_state)


def make_experts(args: Any, embed_dim: int, expert_ffn_dim: int) -> nn.ModuleList:
    """The experts that this process holds: all of them in one process, an equal share in several. With more processes
    than experts, each holds one.

    Raises:
        AssertionError: the numbers of experts and processes do not divide each other.
    """
    world, rank = (
        (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, getattr(args, "ddp_rank", 0))
    )
    count = args.moe_expert_count
    if count >= world:
        assert count % world == 0, f"moe_expert_count ({count}) must be a multiple of the processes ({world})."
    else:
        assert world % count == 0, f"the processes ({world}) must be a multiple of moe_expert_count ({count})."
    local = max(1, count // world)
    first_seed = int(torch.randint(1_000_000, (1,)).item())
    experts = []
    for index in range(local):
        with set_torch_seed(first_seed + (rank * local + index) % count):
            expert = FeedForwardNetwork(
                embed_dim,
                expert_ffn_dim,
                args.activation_fn,
                args.dropout,
                args.activation_dropout,
                args.layernorm_eps,
                args.subln,
            )
        experts.append(expert)
    return nn.ModuleList(experts)


def get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    """relu, gelu or swish.

    Raises:
        NotImplementedError: another name.
    """
    if activation not in ACTIVATIONS:
        raise NotImplementedError(f"activation_fn {activation!r} is none of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


class FeedForwardNetwork(nn.Module):
    """fc2(activation(fc1(x))), optionally with SubLN's norm in between.

    Args:
        embed_dim, ffn_dim: widths.
        activation_fn: a name.
        dropout, activation_dropout: of the output and of the activations.
        layernorm_eps: of the norm.
        subln: whether there is one.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        activation_fn: str,
        dropout: float,
        activation_dropout: float,
        layernorm_eps: float,
        subln: bool = False,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.activation_fn = get_activation_fn(activation=str(activation_fn))
        self.activation_dropout_module = nn.Dropout(activation_dropout)
        self.dropout_module = nn.Dropout(dropout)
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)
        self.ffn_layernorm = nn.LayerNorm(ffn_dim, eps=layernorm_eps) if subln else None

    def reset_parameters(self) -> None:
        """Draw initial values anew."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        if self.ffn_layernorm is not None:
            self.ffn_layernorm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) to the same shape."""
        inner = self.fc1(x)
        inner = self.activation_dropout_module(self.activation_fn(inner.float()).to(inner.dtype))
        if self.ffn_layernorm is not None:
            inner = self.ffn_layernorm(inner)
        output: Tensor = self.dropout_module(self.fc2(inner))
        return output
