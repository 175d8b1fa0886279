"""Cut slides in a scanner's format into tiles with tissue, and embed them, for --task slide_classification.

For each slide, OUTPUT/NAME.h5 gets the tiles' coordinates (coords) and, with --encoder, their features. A slide whose
file is there is left alone, so that the command resumes after an interruption. A slide that cannot be read is named and
left out; the exit code is then 1.
"""

import argparse
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import print_sentence
from torchscale_fairseq.tools.progress import progress

EXAMPLE = "torchscale-fairseq tile-slides scans --output data/tiles --tile-size 64"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("slides", type=Path, nargs="+", metavar="SLIDE", help="files of OpenSlide, or folders of them")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the .h5 files go")
    parser.add_argument("--tile-size", type=int, default=256, metavar="N", help="side of a tile in pixels (256)")
    parser.add_argument(
        "--mpp", type=float, metavar="X", help="micrometres per pixel of the tiles (default: those of the slide)"
    )
    parser.add_argument(
        "--min-tissue", type=float, default=0.1, metavar="X", help="least share of a tile that is tissue (0.1)"
    )
    parser.add_argument("--encoder", metavar="MODEL", help="a model of timm by name, or a TorchScript file")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of the timm model (default: pretrained)")
    parser.add_argument(
        "--center-crop",
        action="store_true",
        help="cut the middle out of tiles that are larger than the timm model's images, as Prov-GigaPath does, "
        "instead of scaling them",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="tiles at a time (64)")
    parser.add_argument("--device", help="cpu or cuda, where the encoder runs (default: cuda if there is a GPU)")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.core.files import make_directory
    from torchscale_fairseq.data.problems import DataError
    from torchscale_fairseq.data.slides.tiling import slides_in

    _check(options)
    slides = list(slides_in(options.slides))
    make_directory(options.output)
    encoder = _encoder(options)
    failed = 0
    for slide in progress(slides, "tiling", "slide"):
        target = options.output / f"{slide.stem}.h5"
        if target.exists():
            continue
        try:
            _tile(slide, target, encoder, options)
        except DataError as error:
            print_sentence(str(error), options.program)
            failed += 1
    if failed:
        raise InputError(f"{failed} of {len(slides)} slides could not be read; the others are in {options.output}")


def _check(options: argparse.Namespace) -> None:
    for name, least in (("tile_size", 1), ("batch_size", 1), ("min_tissue", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} ({getattr(options, name)}) must be at least {least}.")


def _encoder(options: argparse.Namespace) -> Any:
    if options.encoder is None:
        return None
    import torch

    from torchscale_fairseq.data.slides.tile_encoder import TileEncoder

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TileEncoder(options.encoder, options.weights, device, center_crop=options.center_crop)


def _tile(path: Path, target: Path, encoder: Any, options: argparse.Namespace) -> None:
    """Write a slide's file, batch by batch."""
    from torchscale_fairseq.core.files import write_atomically
    from torchscale_fairseq.data.problems import DataError
    from torchscale_fairseq.data.slides.files import optional_package
    from torchscale_fairseq.data.slides.tiling import Slide

    h5py = optional_package("h5py", "writing .h5")
    slide = Slide(path, options.tile_size, options.mpp)
    try:
        coords = slide.coords(options.min_tissue)
        if not len(coords):
            raise DataError(f"{path} has no tile with tissue; lower --min-tissue ({options.min_tissue}).")
        with write_atomically(target) as scratch, h5py.File(scratch, "w") as file:
            file["coords"] = coords
            file.attrs.update(slide=path.name, tile_size=slide.tile_size, mpp=slide.mpp or 0.0)
            for start in range(0, len(coords) if encoder else 0, options.batch_size):
                chunk = coords[start : start + options.batch_size]
                features = encoder([slide.tile(int(x), int(y)) for x, y in chunk]).numpy()
                if "features" not in file:
                    file.create_dataset("features", (len(coords), features.shape[1]), features.dtype)
                file["features"][start : start + len(chunk)] = features
    finally:
        slide.close()
