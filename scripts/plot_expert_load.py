"""The old name of ``torchscale-fairseq plot-expert-load``."""

import sys

from torchscale_fairseq.tools.command import main

main(["plot-expert-load", *sys.argv[1:]])
