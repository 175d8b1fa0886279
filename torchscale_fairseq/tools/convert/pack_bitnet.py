"""Write a checkpoint of a BitNet model with its weights packed: 1.6 bits each for b1.58, 1 bit for b1.

fairseq-generate, fairseq-eval-lm and their siblings read it like any other checkpoint, in the memory of the packed
weights, and compute the outputs of the trained model in evaluation. It cannot be trained: keep the checkpoint that was
packed to train on. Embeddings, norms and output projection keep their values and their size.
"""

import argparse

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert pack-bitnet runs/bitnet/checkpoint_last.pt runs/bitnet/packed.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "a checkpoint trained with --bitnet", "the checkpoint to write")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.convert.bitnet_packing import pack_checkpoint

    note = pack_checkpoint(options.input, options.output)
    print(f"wrote {options.output}: {note}")
