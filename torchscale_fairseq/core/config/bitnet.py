"""Options of quantised linear layers."""

from dataclasses import dataclass

from ..ops.quantization import RECIPES, SCHEMES
from .option import Config, option


@dataclass(frozen=True, kw_only=True)
class BitNetOptions(Config):
    """Options of quantised linear layers."""

    bitnet: str | None = option(
        None,
        "BitNet: weights of attention, retention and feed-forward networks are -1, 0 or 1 times a scale (b1.58), or "
        "-1 or 1 (b1), and activations have eight bits",
        choices=SCHEMES,
    )
    bitnet_recipe: str | None = option(
        None,
        "details of bitnet: those of the authors' later notes and code, or of the papers; unset: faq",
        choices=RECIPES,
    )
    bitnet_packed: bool = option(False, "weights are packed by scripts/convert/pack_bitnet.py, and are not trained")

    def _check(self) -> None:
        super()._check()
        for name in ("bitnet_recipe", "bitnet_packed"):
            if getattr(self, name) and self.bitnet is None:
                raise ValueError(f"{name} ({getattr(self, name)}) has no use without bitnet; give bitnet=b1.58 too.")
        chunk: int = getattr(self, "ffn_chunk_size")  # noqa: B009 - a field of the classes below
        if chunk and self.bitnet == "b1" and self.bitnet_recipe == "paper":
            raise ValueError(
                f"ffn_chunk_size ({chunk}) would change bitnet=b1 with bitnet_recipe=paper, which quantises the "
                "activations of all tokens by one scale; use bitnet_recipe=faq, or ffn_chunk_size=0."
            )
