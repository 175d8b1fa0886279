"""Write text to the data directory of --task pretraining: shards, their index, and json/SPLIT.json.

The files are text in UTF-8, with a sentence or paragraph per line and an empty line between documents; or JSON lines,
Parquet or data sets saved by datasets, as --task pretraining reads them, with a document per line or row. A document
also ends with its file. White space of any kind and length becomes one space. Run data train-tokenizer first, or name
another tokenizer: each shard is read back and tokenized, and its tokens must give back the text.

It works in parallel, and resumes when it is run again. A second call with another --name adds a source; --weight then
sets the share of each source in an epoch.
"""

import argparse
import os
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.data.splits import SPLITS
from torchscale_fairseq.tools.options import add_text_field, add_tokenizer, location, positive

EXAMPLE = "torchscale-fairseq data shard-corpus data/shards --train text/train.txt --valid text/valid.txt"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="DIR", help="the data directory, which holds the tokenizer")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            type=location,
            nargs="+",
            default=[],
            metavar="FILE",
            help=f"text of the {split} split: files, patterns or URLs of files, and saved data sets",
        )
    add_text_field(parser)
    add_tokenizer(parser)
    parser.add_argument("--name", help="name of this source (default: its language)")
    parser.add_argument("--source-lang", default="en", metavar="LANGUAGE", help="language of this source (default: en)")
    parser.add_argument(
        "--weight", type=float, metavar="W", help="share of this source relative to others (default: that of its text)"
    )
    parser.add_argument(
        "--shard-size", type=positive, default=64, metavar="MB", help="size of a shard in megabytes (default: 64)"
    )
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count(), metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument("--skip-invalid", action="store_true", help="count and leave out lines that are not text")
    parser.add_argument(
        "--lossy",
        action="store_true",
        help="accept a tokenizer that does not give back the text, such as one with NFKC",
    )


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.data.shards import shard

    if not any(getattr(options, split) for split in SPLITS):
        raise InputError("name the text: --train, --valid or --test")
    if options.weight is not None and not options.weight > 0:
        raise InputError(f"--weight ({options.weight}) must be above 0")
    options.name = options.name or options.source_lang
    shard(options)
