"""The old name of ``torchscale-fairseq convert from-torchscale``."""

import sys

from torchscale_fairseq.tools.command import main

words = [word for word in sys.argv[1:] if word != "--to-official"]
direction = "to" if len(words) < len(sys.argv) - 1 else "from"
main(["convert", f"{direction}-torchscale", *words])
