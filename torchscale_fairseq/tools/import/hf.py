"""Make a checkpoint of fairseq from a folder that export hf wrote.

The weights may have been trained further by transformers and saved into such a folder: copy fairseq.json (and
heads.safetensors, if there is one) into it.
"""

import argparse

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq import hf masked-hf masked.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "the folder", "the checkpoint to write")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.export.huggingface.writing import import_folder

    note = import_folder(options.input, options.output)
    print(f"wrote {options.output}: {note}")
