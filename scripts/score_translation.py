"""The old name of ``torchscale-fairseq score-translation``."""

import sys

from torchscale_fairseq.tools.command import main

main(["score-translation", *sys.argv[1:]])
