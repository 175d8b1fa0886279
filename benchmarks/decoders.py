"""The decoders whose training steps are compared.

All sides are one model: a SubLN decoder with learned positions and tied embeddings, on the official side's weights.
A step is forward, cross-entropy and backward; the optimizer, the same everywhere, is left out.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.report import COMPILED, OFFICIAL
from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.config import DecoderConfig
from torchscale_fairseq.core.flops import Load, training_flops
from torchscale_fairseq.core.layers.embedding import PositionalEmbedding, TextEmbedding
from torchscale_fairseq.core.ops.positions import FIRST_POSITION, PADDING_POSITION


@dataclass(frozen=True)
class Size:
    """A decoder, and how many tokens of it a step takes by default."""

    layers: int
    width: int
    heads: int
    ffn_width: int
    vocab_size: int
    tokens_per_step: int


SIZES = {
    "base": Size(6, 512, 8, 2048, 8_000, 2_048),
    "125M": Size(12, 768, 12, 3072, 50_000, 8_192),
    "350M": Size(24, 1024, 16, 4096, 50_000, 4_096),
    "1.3B": Size(24, 2048, 16, 8192, 50_000, 4_096),
}


@dataclass(frozen=True)
class Case:
    """One comparison. ``dtype`` is that of parameters and activations; there is no autocast."""

    name: str
    size: Size
    length: int
    device: str
    dtype: torch.dtype
    seed: int

    @property
    def batch(self) -> int:
        """Sequences in a step."""
        return max(1, self.size.tokens_per_step // self.length)

    @property
    def title(self) -> str:
        """Name in the table."""
        return f"training, {self.name}, {self.batch} x {self.length}"

    def in_float32(self) -> "Case":
        """Itself, if it is in float32; or else one sequence of at most 512 tokens, which fits wherever it does."""
        if self.dtype == torch.float32:
            return self
        length = min(self.length, 512)
        return replace(self, size=replace(self.size, tokens_per_step=length), length=length, dtype=torch.float32)

    def tokens(self) -> Tensor:
        """(batch, length + 1): the inputs, and one more for the targets."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.length + 1)
        return torch.randint(FIRST_POSITION, self.size.vocab_size, shape, generator=generator).to(self.device)


def flops_per_step(size: Size, batch: int, length: int) -> float:
    """Model FLOPs of a step, as ``core/flops.py`` counts them."""
    load = Load((length,) * batch)
    return training_flops(DecoderConfig(**_sizes(size)), decoder=load, predictions=load.tokens)


def official_weights(case: Case) -> dict[str, Tensor]:
    """The parameters that all sides take, on the CPU."""
    torch.manual_seed(case.seed)
    return {name: value.cpu() for name, value in build(OFFICIAL, case, None).state_dict().items()}


def build(side: str, case: Case, weights: dict[str, Tensor] | None) -> nn.Module:
    """A side's decoder: (batch, length) tokens to a tuple that begins with logits.

    Args:
        side: OFFICIAL (after ``load_official``), OURS or COMPILED.
        case: what it is for.
        weights: its parameters; None for fresh ones.
    """
    with torch.device(case.device):
        model = _official(case) if side == OFFICIAL else _ours(case, compile=side == COMPILED)
    if weights is not None:
        model.load_state_dict(weights)
    return model.to(case.dtype)


def _official(case: Case) -> nn.Module:
    from torchscale.architecture import config, decoder
    from torchscale.component import embedding

    vocab_size, width = case.size.vocab_size, case.size.width
    return decoder.Decoder(
        config.DecoderConfig(**_options(case)),
        embedding.TextEmbedding(vocab_size, width, PADDING_POSITION),
        embedding.PositionalEmbedding(case.length + FIRST_POSITION, width, PADDING_POSITION),
    )


def _ours(case: Case, *, compile: bool) -> nn.Module:
    vocab_size, width = case.size.vocab_size, case.size.width
    options = {**_options(case), "compile": True} if compile else _options(case)
    return Decoder(
        DecoderConfig(torchscale_compatible=True, **options),
        TextEmbedding(vocab_size, width, PADDING_POSITION),
        PositionalEmbedding(case.length + FIRST_POSITION, width, PADDING_POSITION),
    )


def _options(case: Case) -> dict[str, Any]:
    return {**_sizes(case.size), "share_decoder_input_output_embed": True, "subln": True}


def _sizes(size: Size) -> dict[str, Any]:
    return {
        "decoder_layers": size.layers,
        "decoder_embed_dim": size.width,
        "decoder_attention_heads": size.heads,
        "decoder_ffn_embed_dim": size.ffn_width,
        "vocab_size": size.vocab_size,
    }


def training_step(model: nn.Module, tokens: Tensor) -> Tensor:
    """A step on (batch, length + 1) tokens; leaves the gradients and returns the logits."""
    model.zero_grad()
    logits: Tensor = model(tokens[:, :-1])[0]
    F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    return logits.detach()
