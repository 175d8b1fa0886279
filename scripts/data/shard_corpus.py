"""The old name of ``torchscale-fairseq data shard-corpus``."""

import sys

from torchscale_fairseq.tools.command import main

main(["data", "shard-corpus", *sys.argv[1:]])
