"""Text in TorchScale's format (docs/pretraining.md), images, captions and tables on disk, as samples for training."""
