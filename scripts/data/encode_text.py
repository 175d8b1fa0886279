"""The old name of ``torchscale-fairseq data encode-text``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "encode-text", *sys.argv[1:]])
