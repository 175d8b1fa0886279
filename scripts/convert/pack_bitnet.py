"""The old name of ``torchscale-fairseq convert pack-bitnet``."""

import sys

from torchscale_fairseq.tools.command import main

main(["convert", "pack-bitnet", *sys.argv[1:]])
