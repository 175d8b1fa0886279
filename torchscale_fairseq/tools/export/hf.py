"""Write the model of a checkpoint as a folder that Hugging Face's transformers loads.

The folder holds config.json, weights in safetensors (several files above 5 GB), a tokenizer and a modelling file that
builds on this package, so that AutoModelForCausalLM and its siblings load it with trust_remote_code=True. import hf
makes a checkpoint of fairseq of it again. See docs/export.md.
"""

import argparse

from torchscale_fairseq.tools.options import add_exported

EXAMPLE = "torchscale-fairseq export hf runs/masked/checkpoint_best.pt masked-hf --data data/text"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_exported(parser)


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.export.dictionaries import Dictionaries
    from torchscale_fairseq.export.huggingface.writing import export

    note = export(options.checkpoint, options.folder, Dictionaries(options.data, options.sentencepiece))
    print(f"wrote {options.folder}: {note}")
