"""The old name of ``torchscale-fairseq data prepare-language``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "prepare-language", *sys.argv[1:]])
