"""Flags that train tiny models of images, and their predictions."""

from pathlib import Path

from tests.fairseq_cli import Finished, run_beside_fairseq

IMAGES = ["--task", "image_classification", "--criterion", "image_classification", "--arch", "longvit_tiny"]
IMAGES += ["--img-size", "32", "--patch-size", "8", "--encoder-layers", "1", "--encoder-embed-dim", "16"]
IMAGES += ["--encoder-ffn-embed-dim", "32", "--encoder-attention-heads", "2", "--segment-length", "[4,16]"]
IMAGES += ["--dilated-ratio", "[1,2]"]
IMAGES_AND_TEXT = ["--task", "image_text", "--criterion", "image_text", "--img-size", "32", "--patch-size", "8"]


def classify(checkpoint: Path, *images: Path) -> Finished:
    """Run ``torchscale-fairseq classify-images`` where fairseq is imported already."""
    words = ["classify-images", "--checkpoint", checkpoint, "--device", "cpu", *images]
    return run_beside_fairseq(
        f"""
        from torchscale_fairseq.tools.command import main
        main({[str(word) for word in words]})
        """,
        plugin=False,
    )
