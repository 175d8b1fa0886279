"""Evaluate a language model on tasks of EleutherAI's evaluation harness, lm-eval: likelihoods of choices, perplexity of
texts, generated answers.

--options holds further options of lm_eval itself, such as --num_fewshot, --limit, --device and --output_path;
options of the model, such as max_length, go into --model-args. Several processes share the work under accelerate
launch -m torchscale_fairseq lm-eval. See docs/evaluation.md.
"""

import argparse
from pathlib import Path

from torchscale_fairseq.tools.options import add_dictionaries

EXAMPLE = (
    "torchscale-fairseq lm-eval runs/text/checkpoint_best.pt --data data/text --tasks choices \\\n"
    "    --options '--include_path tasks --limit 100'"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the checkpoint")
    parser.add_argument("--tasks", required=True, metavar="NAMES", help="tasks, separated by commas")
    add_dictionaries(parser)
    parser.add_argument("--batch-size", default="8", metavar="N", help="texts at a time, or auto (default: 8)")
    parser.add_argument("--model-args", default="", metavar="NAME=VALUE,...", help="further options of the model")
    parser.add_argument("--options", default="", metavar="'...'", help="further options of lm_eval, in quotes")


def run(options: argparse.Namespace) -> None:
    import shlex
    import sys

    from lm_eval.__main__ import cli_evaluate

    from torchscale_fairseq.evaluation.harness import MODEL, register

    register()
    model = {name: getattr(options, name) for name in ("checkpoint", "data", "sentencepiece")}
    words = [f"{name}={value}" for name, value in model.items() if value is not None]
    words += [options.model_args] * bool(options.model_args)
    given = ["--model", MODEL, "--model_args", ",".join(words), "--tasks", options.tasks]
    sys.argv = ["lm_eval", "run", *given, "--batch_size", options.batch_size, *shlex.split(options.options)]
    cli_evaluate()
