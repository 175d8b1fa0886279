"""Training steps of a layer, and of retention alone, of each side."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import OURS
from torchscale_fairseq import Decoder, DecoderConfig, RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.layers.attention_inputs import AttentionInputs
from torchscale_fairseq.core.ops.retention_forms import retention
from torchscale_fairseq.core.ops.retention_tables import log_decays, retention_tables, token_counts

ATTENTION = "attention"
"""The side that is a layer, or a model, of gpt_deepnorm."""
ALLOWED = 2e-4
"""Largest difference from the official side in float32, of outputs and of each gradient, relative to the largest
entry: what is stated with the golden vectors of tests/parity for gradients, which norms amplify."""


@dataclass(frozen=True)
class Case:
    """One length, and the sizes of a layer."""

    length: int
    width: int = 512
    value_width: int = 864
    heads: int = 4
    device: str = "cpu"
    seed: int = 1

    def config(self, **options: Any) -> RetNetConfig:
        """Of ours; it computes what the official layer does."""
        return RetNetConfig(
            decoder_embed_dim=self.width,
            decoder_value_embed_dim=self.value_width,
            decoder_ffn_embed_dim=self.value_width,
            decoder_retention_heads=self.heads,
            **{"decoder_layers": 1, "activation_fn": "swish", "torchscale_compatible": True, **options},
        )

    def attention_config(self, **options: Any) -> DecoderConfig:
        """Of gpt_deepnorm, with four times the width in its feed-forward networks."""
        return DecoderConfig(
            decoder_embed_dim=self.width,
            decoder_ffn_embed_dim=4 * self.width,
            decoder_attention_heads=self.width // self.attention_head_dim,
            **{"decoder_layers": 1, "deepnorm": True, **options},
        )

    @property
    def attention_head_dim(self) -> int:
        """As in gpt_deepnorm's sizes."""
        return 128 if self.width >= 2048 else 64

    def random(self, *shape: int) -> Tensor:
        """Normal numbers that need a gradient."""
        generator = torch.Generator().manual_seed(self.seed + sum(shape))
        return torch.randn(*shape, generator=generator).to(self.device).requires_grad_()


Step = Callable[[], dict[str, Tensor]]
"""Runs forward and backward; returns output and gradients."""


def layer_step(case: Case, side: str) -> Step:
    """A training step of one layer, without embeddings."""
    torch.manual_seed(case.seed)
    ours = RetNetDecoder(case.config()).to(case.device)
    x, weights = case.random(1, case.length, case.width), case.random(1, case.length, case.width).detach()
    if side == ATTENTION:
        layer: nn.Module = Decoder(case.attention_config()).to(case.device).layers[0]
        forward = lambda x: layer(x, AttentionInputs(causal=True))[0]  # noqa: E731
    elif side == OURS:
        layer = ours.layers[0]
        inputs = ours._retention_inputs(x, None, None, None)
        forward = lambda x: layer(x, inputs)[0]  # noqa: E731
    else:
        from torchscale.architecture import config, retnet

        options = config.RetNetConfig(**{k: v for k, v in vars(case.config()).items() if k.startswith("decoder_")})
        options.activation_fn, options.decoder_normalize_before = "swish", True
        layer = retnet.DecoderLayer(options, 0).to(case.device)
        layer.load_state_dict(ours.layers[0].state_dict())
        positions = retnet.RetNetRelPos(options).to(case.device)(case.length)
        forward = lambda x: layer(x, retention_rel_pos=positions)[0]  # noqa: E731
    return partial(step, forward, weights, {"input": x, **dict(layer.named_parameters())})


def retention_step(case: Case, side: str) -> Step:
    """The same of retention alone: rotated queries and keys, and values. Scores are so small that the official form's
    clamp at 1 leaves them alone."""
    key_dim, value_dim = case.width // case.heads, case.value_width // case.heads
    query, key = (case.random(1, case.length, case.heads, key_dim + i)[..., :key_dim].detach() for i in range(2))
    leaves = {
        "query": query / 100,
        "key": key / key_dim**0.5,
        "value": case.random(1, case.length, case.heads, value_dim),
    }
    leaves = {name: x.detach().contiguous().requires_grad_() for name, x in leaves.items()}
    log_decay = log_decays(case.heads, "powers", torch.device(case.device)).float()
    if side == OURS:
        counts = token_counts(case.length, torch.zeros(1, dtype=torch.long, device=case.device))
        cos, sin = retention_tables(counts, log_decay, 2, dtype=torch.float32, inclusive=False).query
        scale = (cos.square() + sin.square()).sqrt()
        forward = partial(_our_retention, leaves, log_decay, scale)
    else:
        forward = partial(_official_retention, case, leaves)
    generator = torch.Generator().manual_seed(case.seed)
    weights = torch.randn(leaves["value"].shape, generator=generator).to(case.device)
    return partial(step, lambda _: forward(), weights, {"input": leaves["value"], **leaves})


def _our_retention(leaves: dict[str, Tensor], log_decay: Tensor, scale: Tensor) -> Tensor:
    return retention(leaves["query"] * scale, leaves["key"], leaves["value"], log_decay)[0]


def _official_retention(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    from torchscale.architecture import config, retnet
    from torchscale.component.multiscale_retention import MultiScaleRetention

    global _official  # the mask is made once per model, and not part of a step
    key = (case.length, case.width, case.heads, case.device)
    if _official is None or _official[0] != key:
        options = config.RetNetConfig(decoder_embed_dim=case.width, decoder_retention_heads=case.heads)
        layer = MultiScaleRetention(options, case.width, case.value_width, case.heads)
        _official = key, layer, retnet.RetNetRelPos(options).to(case.device)(case.length)[1]
    _, layer, mask = _official
    query, key_, value = leaves["query"].transpose(1, 2), leaves["key"].transpose(1, 2), leaves["value"].flatten(2)
    return layer.parallel_forward(query, key_, value, mask)


_official: Any = None


def step(forward: Callable[[Tensor], Tensor], weights: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forward and backward from the leaf "input"; the output is weighted for the backward pass."""
    for leaf in leaves.values():
        leaf.grad = None
    output = forward(leaves["input"])
    output.backward(weights)
    return {"output": output.detach(), **{name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}}
