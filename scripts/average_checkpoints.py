"""The old name of ``torchscale-fairseq average-checkpoints``."""

import sys

from torchscale_fairseq.tools.command import main

main(["average-checkpoints", *sys.argv[1:]])
