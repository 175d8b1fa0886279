"""The folder of ONNX graphs, from a checkpoint of fairseq."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.huggingface.kinds import kind_of
from torchscale_fairseq.export.huggingface.tokenizer_files import write_tokenizers
from torchscale_fairseq.export.plain_model import plain_model
from torchscale_fairseq.tools.convert.safetensors_folder import parts_of

from .graphs import Graph, graphs_of
from .requirements import refuse


def export(checkpoint: Path, folder: Path, dictionaries: Dictionaries) -> str:
    """Write the folder, whole or not at all; return a sentence about it.

    Args:
        checkpoint: of one of our models.
        folder: a new one.
        dictionaries: where the dictionaries and the SentencePiece model are.

    Raises:
        InputError: the model, the checkpoint or the dictionaries do not fit, or the folder exists already.
        ModuleNotFoundError: onnx, onnxscript or tokenizers is not installed.
    """
    parts = parts_of(checkpoint, folder)
    refuse(parts.config)
    kind = kind_of(parts.config)
    rows = len(parts.tensors[kind.embedding]) if kind.embedding else None
    graphs = graphs_of(plain_model(parts))
    with make_directory_atomically(folder) as scratch:
        note = write_tokenizers(scratch, kind, rows, parts, dictionaries)
        for name, graph in graphs.items():
            _write(graph, scratch / f"{name}.onnx")
    return f"{' and '.join(f'{name}.onnx' for name in graphs)}, {note}"


def _write(graph: Graph, path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        importlib.import_module(package)  # so that a missing one is named
    tensors = {name: given.example for name, given in graph.inputs.items()}
    axes = {name: given.axes for name, given in graph.inputs.items()}
    with torch.no_grad(), _without_remarks():
        program = torch.onnx.export(
            graph.module.eval(),
            kwargs={"tensors": tensors},
            dynamic_shapes={"tensors": axes},
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path)


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Drop the thousands of messages by which the exporter reports its passes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
