"""TorchScale's public names with their official signatures, for programs written for it (docs/drop_in.md).

Modules have TorchScale's paths: ``torchscale_fairseq.as_torchscale`` serves ``torchscale_api.architecture.encoder`` as
``torchscale.architecture.encoder``. Everything computes what TorchScale's code (git main 4d1e0e8) computes, but for
defects that no program needs (docs/parity.md). New programs use the names of ``torchscale_fairseq`` itself.
"""

__version__ = "0.4.0"
