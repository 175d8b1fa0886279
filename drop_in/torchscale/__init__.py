"""TorchScale's import paths, each served by the module of the same path in ``torchscale_fairseq.torchscale_api``."""

import importlib
import sys

DROP_IN = True
importlib.import_module("torchscale_fairseq.as_torchscale")
sys.modules[__name__] = importlib.import_module("torchscale_fairseq.torchscale_api")
