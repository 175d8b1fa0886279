"""Models registered with fairseq; one module per architecture, whose presets are models of their own."""

from torchscale_fairseq import plugin

plugin.register()
