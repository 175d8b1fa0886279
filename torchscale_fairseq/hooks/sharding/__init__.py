"""``--ddp-backend fully_sharded``: fairseq's flag, by PyTorch's FSDP2 (docs/scaling.md)."""
