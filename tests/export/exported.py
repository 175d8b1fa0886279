"""Tiny models of each family, exported for transformers."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.tools.families import FAMILIES, Family, write_checkpoint
from tests.tools.in_process import run_tool
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.huggingface.writing import export

WORDS = 20
END = 2
MORE = {
    "xpos": Family("gpt_xpos_small", "language_modeling"),
    "sparse_gpt": Family("gpt_deepnorm_small", "language_modeling", {"moe_freq": 1, "moe_expert_count": 4}),
}
CAUSAL = ["gpt", "longnet", "compatible", "retnet", "bitnet", "xpos", "sparse_gpt"]
TRANSLATION = ["mt", "mt_retnet", "experts"]
ALL = [*CAUSAL, "bert", *TRANSLATION, "beit3", "longvit"]


@dataclass(frozen=True)
class Exported:
    """A checkpoint, its model in fairseq, and the folder made of it."""

    checkpoint: Path
    model: nn.Module
    folder: Path

    @functools.cached_property
    def auto(self) -> Any:
        """The class of transformers that loads the folder."""
        content = json.loads((self.folder / "config.json").read_text())
        (name,) = content["auto_map"].keys() - {"AutoConfig"}
        return getattr(transformers, name)

    def load(self, folder: Path | None = None, **how: Any) -> Any:
        """The model, from this folder or another one."""
        return self.auto.from_pretrained(folder or self.folder, trust_remote_code=True, **how).eval()


def write_words(folder: Path) -> Path:
    """Write the dictionary of the families' tiny models."""
    folder.mkdir(exist_ok=True)
    (folder / "dict.txt").write_text("".join(f"w{index} 1\n" for index in range(WORDS)))
    return folder


def exported(name: str, folder: Path, shard_bytes: int = 10**9) -> Exported:
    """Export a family's tiny model, whose translations end now and then."""
    checkpoint = folder / f"{name}.pt"
    model = write_checkpoint((FAMILIES | MORE)[name], checkpoint)
    if name in TRANSLATION:
        state = torch.load(checkpoint)
        output = state["model"]["decoder.output_projection.weight"]
        output[END] = output[END + 2 :].mean(0) + 0.9 * output[7]
        torch.save(state, checkpoint)
        model.load_state_dict(state["model"])
    if name == "packed":
        return packed(folder, shard_bytes)
    export(checkpoint, folder / name, Dictionaries(write_words(folder / "words")), shard_bytes)
    return Exported(checkpoint, model, folder / name)


def packed(folder: Path, shard_bytes: int = 10**9) -> Exported:
    """The BitNet with packed weights; ``model`` is the one before."""
    model = write_checkpoint(FAMILIES["bitnet"], folder / "bitnet.pt")
    run_tool("convert", "pack-bitnet", folder / "bitnet.pt", folder / "packed.pt").check()
    export(folder / "packed.pt", folder / "packed", Dictionaries(write_words(folder / "words")), shard_bytes)
    return Exported(folder / "packed.pt", model, folder / "packed")


def padded_tokens(rows: int = 6, seq: int = 9) -> tuple[Tensor, Tensor]:
    """Tokens (rows, seq) with padding on the left, and transformers' mask of them."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 4 + WORDS, (rows, seq), generator=generator)
    for row in range(rows):
        tokens[row, : row % 4] = 1
    return tokens, tokens.ne(1).long()
