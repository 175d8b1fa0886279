"""The old name of ``torchscale-fairseq perplexity``."""

import sys

from torchscale_fairseq.tools.command import main

main(["perplexity", *sys.argv[1:]])
