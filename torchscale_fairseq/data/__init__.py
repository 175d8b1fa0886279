"""Text on disk, in TorchScale's format, as samples for pretraining (docs/pretraining.md)."""
