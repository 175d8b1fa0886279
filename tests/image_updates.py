"""A training of a small ViT on drawings."""

from pathlib import Path

from tests.plugin.drawings import make_folders

TRAIN = ["--task", "image_classification", "--criterion", "image_classification", "--arch", "vit_magneto_tiny"]
TRAIN += ["--img-size", "32", "--patch-size", "8", "--encoder-layers", "2", "--encoder-embed-dim", "32"]
TRAIN += ["--encoder-ffn-embed-dim", "64", "--encoder-attention-heads", "2", "--batch-size", "3", "--lr", "1e-2"]
TRAIN += ["--optimizer", "sgd", "--max-update", "12", "--num-workers", "0", "--label-smoothing", "0.1"]
TRAIN += ["--required-batch-size-multiple", "1", "--no-epoch-checkpoints", "--log-format", "simple"]
TRAIN += ["--disable-validation", "--log-interval", "1"]


def image_words(folder: Path) -> list[object]:
    """Seven batches an epoch, one of which is smaller."""
    return [make_folders(folder, train=5, valid=2), *TRAIN]
