"""The old name of ``torchscale-fairseq data train-tokenizer``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "train-tokenizer", *sys.argv[1:]])
