"""The old name of ``torchscale-fairseq convert to-safetensors``."""

import sys

from torchscale_fairseq.tools.command import main

words = [word for word in sys.argv[1:] if word != "--to-fairseq"]
direction = "from" if len(words) < len(sys.argv) - 1 else "to"
main(["convert", f"{direction}-safetensors", *words])
