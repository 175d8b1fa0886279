"""The old name of ``torchscale-fairseq data draw-survival``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "draw-survival", *sys.argv[1:]])
