"""The old name of ``torchscale-fairseq classify-images``."""

import sys

from torchscale_fairseq.tools.command import main

main(["classify-images", *sys.argv[1:]])
