"""Options of quantised linear layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ops.quantization import RECIPES, SCHEMES
from .option import Config, option


@dataclass(frozen=True, kw_only=True)
class BitNetOptions(Config):
    """Options of quantised linear layers."""

    if TYPE_CHECKING:
        ffn_chunk_size: int  # of the classes below

    bitnet: str | None = option(
        None,
        (
            "BitNet: train with quantized weights in the linear layers of attention, retention, feed-forward "
            "networks and experts: -1, 0 or 1 times a scale (b1.58), or -1 or 1 times a scale (b1). Their inputs "
            "are rounded to 8 bits (default: no quantization)"
        ),
        choices=SCHEMES,
    )
    bitnet_recipe: str | None = option(
        None,
        (
            "variant of BitNet: as in the papers (paper), or as in the authors' later FAQ (faq), which differs in"
            " the norm before each linear layer and in how inputs are rounded; docs/bitnet.md (default: faq)"
        ),
        choices=RECIPES,
    )
    bitnet_packed: bool = option(
        False, "the checkpoint's weights were packed by torchscale-fairseq convert pack-bitnet; they cannot be trained"
    )

    def _check(self) -> None:
        super()._check()
        for name in ("bitnet_recipe", "bitnet_packed"):
            if getattr(self, name) and self.bitnet is None:
                raise self._error(name, f"{{{name}=}} has no use without {{bitnet}}", {"bitnet": "b1.58"}, {name: None})
        if self.ffn_chunk_size and self.bitnet == "b1" and self.bitnet_recipe == "paper":
            raise self._error(
                "ffn_chunk_size",
                "{ffn_chunk_size()} would change {bitnet=} with {bitnet_recipe=}, which quantises the activations of "
                "all tokens by one scale",
                {"bitnet_recipe": "faq"},
                {"ffn_chunk_size": 0},
            )
