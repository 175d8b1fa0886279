"""Tasks registered with fairseq."""

from torchscale_fairseq import plugin

plugin.register()
