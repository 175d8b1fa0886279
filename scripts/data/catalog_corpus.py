"""The old name of ``torchscale-fairseq data catalog-corpus``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "catalog-corpus", *sys.argv[1:]])
