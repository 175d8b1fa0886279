"""Write the model of a checkpoint as ONNX graphs, which onnxruntime and others run without torch.

encoder.onnx encodes a batch. step.onnx decodes: it takes new tokens and the state of earlier ones, and returns logits
and the new state. Models with experts and dilated attention over text are refused. See docs/export.md.
"""

import argparse

from torchscale_fairseq.tools.options import add_exported

EXAMPLE = "torchscale-fairseq export onnx runs/masked/checkpoint_best.pt masked-onnx --data data/text"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_exported(parser)


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.export.dictionaries import Dictionaries
    from torchscale_fairseq.export.onnx.writing import export

    note = export(options.checkpoint, options.folder, Dictionaries(options.data, options.sentencepiece))
    print(f"wrote {options.folder}: {note}")
