"""Write a translation model as a folder that CTranslate2 loads, for fast translation on a CPU or a GPU.

DeepNorm and plain Transformers without experts can be written, post-norm or pre-norm, with LayerNorm or RMSNorm, with
gated feed-forward networks or not. See docs/export.md.
"""

import argparse

from torchscale_fairseq.tools.options import add_exported

EXAMPLE = "torchscale-fairseq export ctranslate2 runs/en-de/checkpoint_best.pt en-de-ct2 --data data/en-de"
QUANTIZATIONS = ("int8", "int16", "float16", "bfloat16", "float32")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_exported(parser)
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="float32", help="precision of the weights (default: float32)"
    )


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.export.ctranslate2.writing import export
    from torchscale_fairseq.export.dictionaries import Dictionaries

    dictionaries = Dictionaries(options.data, options.sentencepiece)
    note = export(options.checkpoint, options.folder, dictionaries, options.quantization)
    print(f"wrote {options.folder}: {note}")
