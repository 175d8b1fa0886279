"""Flags that train tiny models of slides."""

TINY = ["--task", "slide_classification", "--criterion", "slide_classification", "--arch", "slide_encoder_tiny"]
TINY += ["--encoder-layers", "1", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32", "--feature-dim", "6"]
TINY += ["--encoder-attention-heads", "2", "--segment-length", "[8,64]", "--dilated-ratio", "[1,2]"]
COMMON = ["--batch-size", "4", "--optimizer", "sgd", "--lr", "0.1", "--cpu", "--num-workers", "0", "--log-format"]
COMMON += ["simple", "--log-interval", "1", "--no-epoch-checkpoints", "--required-batch-size-multiple", "1"]
LEARNING = [
    "--encoder-layers",
    "2",
    "--encoder-embed-dim",
    "32",
    "--segment-length",
    "[1024]",
    "--dilated-ratio",
    "[1]",
]
LEARNING += ["--optimizer", "adam", "--lr", "3e-3", "--clip-norm", "1.0", "--batch-size", "16", "--log-interval", "50"]
