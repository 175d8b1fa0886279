"""TorchScale's import paths, served by torchscale-fairseq: every module is one of ``torchscale_fairseq.official``."""

import importlib
import sys

DROP_IN = True
importlib.import_module("torchscale_fairseq.as_torchscale")
sys.modules[__name__] = importlib.import_module("torchscale_fairseq.official")
