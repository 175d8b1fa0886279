"""The old name of ``torchscale-fairseq convert merge-experts``."""

import sys

from torchscale_fairseq.tools.command import main

main(["convert", "merge-experts", *sys.argv[1:]])
