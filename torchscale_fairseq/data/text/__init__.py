"""Text on disk, in TorchScale's format."""
