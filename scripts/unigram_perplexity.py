"""The old name of ``torchscale-fairseq unigram-perplexity``."""

import sys

from torchscale_fairseq.tools.command import main

main(["unigram-perplexity", *sys.argv[1:]])
