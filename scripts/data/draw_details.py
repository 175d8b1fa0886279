"""The old name of ``torchscale-fairseq data draw-details``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "draw-details", *sys.argv[1:]])
