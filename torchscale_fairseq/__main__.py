"""``python -m torchscale_fairseq`` is ``torchscale-fairseq``; alone it prints the path to give as ``--user-dir``."""

import sys

from torchscale_fairseq.tools.command import main

main(sys.argv[1:] or ["user-dir"])
