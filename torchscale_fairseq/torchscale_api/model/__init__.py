"""TorchScale's modules of this path; see ``torchscale_fairseq.torchscale_api``."""
