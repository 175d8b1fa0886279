"""Measurements next to official TorchScale, stock fairseq and plain PyTorch: python -m benchmarks.NAME."""
