"""A plain training loop in PyTorch over a ViT of timm, compiled, with fused AdamW; ``benchmarks/images.py`` runs it.

    python -m benchmarks.timm_loop vit_base_patch16_224 224 128      # model, pixels of a side, images

Float32 weights under bfloat16 autocast, gradients clipped to norm 1. One batch of random images, as timm's models take
them, stays on the device. It prints one line of JSON, and says on stderr how far it is.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

from benchmarks.plain_loop import add_timing_options, seconds_of_update, show_progress


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of an update, as of benchmarks/plain_loop.py."""
    begun = time.perf_counter()
    import timm

    show_progress(f"imported timm {timm.__version__} after {time.perf_counter() - begun:.1f} s")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    size = options.img_size
    with torch.device(options.device):
        model = timm.create_model(options.model, img_size=size, num_classes=options.classes, drop_path_rate=0.0)
        images = torch.randn(options.images, 3, size, size)
        classes = torch.randint(options.classes, (options.images,))
    compiled = torch.compile(model) if options.device == "cuda" else model
    loss = lambda: F.cross_entropy(compiled(images).float(), classes)  # noqa: E731
    return {"seconds": seconds_of_update(loss, list(model.parameters()), options)}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name")
    parser.add_argument("img_size", type=int, help="pixels of a side")
    parser.add_argument("images", type=int, help="of a batch")
    parser.add_argument("--classes", type=int, default=1000, help="(1,000)")
    add_timing_options(parser)
    print(json.dumps(measure(parser.parse_args(words))))


if __name__ == "__main__":
    main(sys.argv[1:])
