"""The old name of ``torchscale-fairseq data python-corpus``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "python-corpus", *sys.argv[1:]])
