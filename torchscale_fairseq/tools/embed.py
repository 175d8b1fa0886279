"""Embed images and texts with a BEiT-3: a vector for each, in one .npz file.

The file has the arrays images and image_embeddings (images, width), and texts and text_embeddings (texts, width).
Vectors of a model of --task image_text_retrieval have length 1, and their products are the model's scores; other models
give the features of the class token and of <s>.
"""

import argparse
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.options import positive

EXAMPLE = (
    "torchscale-fairseq embed --checkpoint runs/retrieval/checkpoint_best.pt --data data/retrieval \\\n"
    "    --images data/retrieval/images --output embeddings.npz"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a model of --arch beit3_...")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the SentencePiece model (default: that of the training)"
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", default=[], metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a file with a text in each line")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .npz file to write")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--device", help="cpu or cuda, where the model runs (default: cuda if there is a GPU)")


def run(options: argparse.Namespace) -> None:
    import numpy as np

    from torchscale_fairseq.core.files import write_atomically

    images = [file for path in options.images for file in _files(path)]
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else []
    if not images and not texts:
        raise InputError("there is nothing to embed; give --images, --texts or both")
    hub = _load(options)
    arrays: dict[str, Any] = {}
    if images:
        vectors = hub.embed_images(images, options.batch_size)
        arrays |= {"images": np.array(list(map(str, images))), "image_embeddings": vectors.float().cpu().numpy()}
    if texts:
        vectors = hub.embed_texts(texts, options.batch_size)
        arrays |= {"texts": np.array(texts), "text_embeddings": vectors.float().cpu().numpy()}
    with write_atomically(options.output) as scratch, scratch.open("wb") as stream:
        np.savez(stream, **arrays)
    print(f"wrote {options.output}: {len(images)} images and {len(texts)} texts")


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]


def _load(options: argparse.Namespace) -> Any:
    import torch

    from torchscale_fairseq import plugin

    plugin.register()
    from torchscale_fairseq.models._hubs import ImageTextHub
    from torchscale_fairseq.models.beit3 import ImageTextModel

    hub = ImageTextModel.from_pretrained(
        str(options.checkpoint.parent), options.checkpoint.name, str(options.data) if options.data else None
    )
    if not isinstance(hub, ImageTextHub):
        raise InputError(
            f"{options.checkpoint} was trained with --task {hub.cfg.task._name}; this command is for a BEiT-3 that was "
            "trained on images with texts (for models of images alone, see embed_images in docs/from_pretrained.md)"
        )
    return hub.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
