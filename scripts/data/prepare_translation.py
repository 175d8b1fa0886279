"""The old name of ``torchscale-fairseq data prepare-translation``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "prepare-translation", *sys.argv[1:]])
