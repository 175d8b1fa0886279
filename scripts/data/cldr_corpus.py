"""The old name of ``torchscale-fairseq data cldr-corpus``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "cldr-corpus", *sys.argv[1:]])
