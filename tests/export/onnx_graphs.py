"""Exported ONNX graphs in onnxruntime, with the loop of decoding around a step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from tests.export.exported import MORE, write_words
from tests.tools.families import FAMILIES, Family, write_checkpoint
from tests.tools.in_process import run_tool
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.onnx.writing import export

Arrays = dict[str, Any]
BLOCKS = Family("gpt_xpos_small", "language_modeling", {"blockwise_causal_window": 6})
RELATIVE = Family("mt_deepnorm_small", "translation", {"rel_pos_buckets": 8, "max_rel_pos": 12})


def exported_graphs(name: str, folder: Path) -> tuple[Any, Path]:
    """The model of a family in fairseq, with two layers and values as after training, and the folder of its graphs."""
    if name == "packed":
        return packed_graphs(folder)
    family = (FAMILIES | MORE | {"blocks": BLOCKS, "relative": RELATIVE})[name]
    layers = {"decoder_layers": 2} if name in ("gpt", "retnet", "mt") else {}
    checkpoint = folder / "model.pt"
    model = write_checkpoint(
        Family(family.arch, family.task, {**family.options, **layers}, family.task_state), checkpoint
    )
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value), alpha=0.3)
    state = torch.load(checkpoint)
    state["model"] = model.state_dict()
    torch.save(state, checkpoint)
    export(checkpoint, folder / "graphs", Dictionaries(write_words(folder / "words")))
    return model, folder / "graphs"


def packed_graphs(folder: Path) -> tuple[Any, Path]:
    """Of a BitNet with packed weights; the model is the one before."""
    model = write_checkpoint(FAMILIES["bitnet"], folder / "bitnet.pt")
    run_tool("convert", "pack-bitnet", folder / "bitnet.pt", folder / "packed.pt").check()
    export(folder / "packed.pt", folder / "graphs", Dictionaries(write_words(folder / "words")))
    return model, folder / "graphs"


class Graph:
    """A graph as a function from arrays to arrays by name."""

    def __init__(self, path: Path):
        self.session = onnxruntime.InferenceSession(str(path))
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Any]) -> Arrays:
        return dict(zip(self.names, self.session.run(None, dict(inputs)), strict=True))

    def empty_state(self, batch: int) -> Arrays:
        """The state before the first token: what ``new_...`` outputs replace, without tokens or zero."""
        kept = {name.removeprefix("new_") for name in self.names if name.startswith("new_")}
        given = {found.name: found for found in self.session.get_inputs() if found.name in kept}
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        sizes = {"batch": batch, "past": 0}
        return {
            name: np.zeros([sizes.get(size, size) for size in found.shape], types[found.type])
            for name, found in given.items()
        }


class Decoding:
    """Decoding of a batch by a step's graph, from the first token on."""

    def __init__(self, step: Graph, batch: int, memory: Mapping[str, Any]):
        self.step = step
        self.memory = dict(memory)
        self.state = step.empty_state(batch)
        self.padding = np.zeros((batch, 0), bool)
        self.keeps_tokens = "key.0" in self.state

    def read(self, tokens: Any) -> Any:
        """Logits (batch, new, vocabulary) after new tokens (batch, new), of which 1 is padding."""
        new = tokens == 1
        self.padding = np.concatenate((self.padding, new), 1)
        mask = self.padding if self.keeps_tokens else new
        found = self.step({"tokens": tokens, "padding_mask": mask, **self.state, **self.memory})
        self.state = {name: found[f"new_{name}"] for name in self.state}
        return found["logits"]
