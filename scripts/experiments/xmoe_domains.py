"""X-MoE and a dense model of the same width on translation of six kinds of text.

Trains four narrow models with the same batches on the corpus of scripts/quickstart.sh, whose sentences are of six kinds
(dates, times, money, units, places, numbers): a dense model, X-MoE with 8 experts in each layer, and X-MoE without
SparseClip or without the balance loss. Draws their validation loss and the load of their experts, and prints the last
values. A second call skips the trainings that are finished.
"""

import argparse
import shlex
from functools import partial
from pathlib import Path

from scripts.experiments.steps import make_once, parser_of, run, step, train
from torchscale_fairseq.core.files import make_directory
from torchscale_fairseq.core.reporting import run_command

NARROW = shlex.split(
    "--encoder-embed-dim 96 --encoder-ffn-embed-dim 96 --decoder-embed-dim 96 --decoder-ffn-embed-dim 96"
)
"""Narrow enough for six kinds of text to compete for the feed-forward networks."""
XMOE = shlex.split("--arch mt_xmoe_small --criterion moe_label_smoothed_cross_entropy --moe-freq 1")
RUNS = {
    "dense": shlex.split("--arch mt_deepnorm_small --criterion label_smoothed_cross_entropy"),
    "xmoe": XMOE,
    "no_sparse_clip": [*XMOE, "--moe-clip", "plain"],
    "no_balance_loss": [*XMOE, "--moe-gate-loss-wt", "0"],
}
TRAINING = shlex.split(
    "--label-smoothing 0.1 --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler polynomial_decay "
    "--lr 2e-3 --warmup-updates 200 --max-tokens 700 --seed 1 --validate-interval-updates 100 --no-epoch-checkpoints "
    "--log-interval 25"
)


def parse_options() -> argparse.Namespace:
    parser = parser_of("xmoe_domains.py", __doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where xmoe_domains.png goes")
    parser.add_argument("--max-update", type=int, default=1500, metavar="N", help="of each training; default 1500")
    parser.add_argument("--gpu", action="store_true", help="train on the GPU, with --fp16")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="options of fairseq-train")
    return parser.parse_args()


def conduct(options: argparse.Namespace) -> None:
    """Make the data, train, and draw."""
    data, runs = options.work_dir / "data", options.work_dir / "runs/xmoe_domains"
    binary = prepare(data)
    updates = ["--max-update", str(options.max_update), "--total-num-update", str(options.max_update)]
    device = ["--fp16"] if options.gpu else ["--cpu"]
    step("2/2 Training")
    for name, model in RUNS.items():
        words = ["--user-dir", "torchscale_fairseq", *model, *NARROW, *TRAINING, *updates, *device, *options.options]
        train(runs / name, [binary, *words])
    make_directory(options.output)
    folders = [runs / name for name in RUNS]
    run(["torchscale-fairseq", "plot-expert-load", *folders, "--output", options.output / "xmoe_domains.png"])


def prepare(data: Path) -> Path:
    """Make the data of scripts/quickstart.sh, and return its directory."""
    step("1/2 Data: as in scripts/quickstart.sh")
    corpus, binary = data / "cldr.en-de", data / "cldr.en-de.bin"
    make_once(corpus, ["torchscale-fairseq", "data", "cldr-corpus", corpus])
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", corpus / split)]
    pieces = shlex.split("--source-lang en --target-lang de --vocab-size 2000 --model-type bpe --split-digits")
    make_once(binary, ["torchscale-fairseq", "data", "prepare-translation", *splits, *pieces, "--output", binary])
    return binary


if __name__ == "__main__":
    run_command(partial(conduct, parse_options()))
