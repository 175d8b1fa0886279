"""Flags of a training whose processes hold slices of the model."""

SHARDED = ["--ddp-backend", "fully_sharded"]
ADAM = ["--optimizer", "adam", "--lr", "1e-2", "--adam-eps", "1e-3"]
"""An epsilon above the rounding of gradients, which Adam magnifies otherwise."""
