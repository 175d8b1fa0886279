"""The old name of ``torchscale-fairseq fill-masks``."""

import sys

from torchscale_fairseq.tools.command import main

main(["fill-masks", *sys.argv[1:]])
