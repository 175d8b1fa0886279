"""fairseq's Trainer in the test's own process, on batches made here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq import trainer as fairseq_trainer
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics

from tests.fairseq_cli import FEW_UPDATES, USER_DIR
from tests.plugin.shrunk import shrunk
from torchscale_fairseq import plugin

plugin.register()

MASKED = ["--task", "masked_lm", "--criterion", "masked_lm", "--max-source-positions", "16", "--attention-dropout", "0"]
"""Flags that make a trainer one of a masked language model."""


def make_trainer(data: Path, folder: Path, *flags: str, arch: str = "gpt_magneto_small", device: str = "cpu") -> Any:
    """A trainer of a tiny language model.

    Args:
        data: binarised text, for its dictionary.
        folder: for checkpoints.
        flags: of fairseq-train; later ones count.
        arch: the model.
        device: cpu or cuda.
    """
    words = [str(data), "--user-dir", str(USER_DIR), "--task", "language_modeling", *shrunk(arch), *FEW_UPDATES]
    words += ["--cpu"] if device == "cpu" else []
    words += ["--dropout", "0", "--log-interval", "100", "--max-update", "1000", "--clip-norm", "1"]
    words += ["--tokens-per-sample", "16", "--save-dir", str(folder), *flags]
    metrics.reset()
    torch.manual_seed(1)
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    task = tasks.setup_task(config.task)
    criterion = task.build_criterion(config.criterion)
    return fairseq_trainer.Trainer(config, task, task.build_model(config.model), criterion)


def make_batch(seed: int, *, padding: int = 0) -> dict[str, Any]:
    """Three sequences of eight tokens, the last ``padding`` of the first being padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 30, (3, 9), generator=generator)
    if padding:
        tokens[0, -padding:] = 1
    source, target = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ntokens = int(target.ne(1).sum())
    inputs = {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}
    return {"id": torch.arange(3), "net_input": inputs, "target": target, "ntokens": ntokens, "nsentences": 3}


def masked_batch(seed: int, *, share: float = 0.3, padding: int = 0) -> dict[str, Any]:
    """Three sequences of sixteen tokens, this share of them masked, the last ``padding`` of the first being padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 30, (3, 16), generator=generator)
    tokens[0, 16 - padding :] = 1
    masked = (torch.rand(3, 16, generator=generator) < share) & (tokens != 1)
    source = tokens.masked_fill(masked, 39)
    inputs = {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}
    target = tokens.masked_fill(~masked, 1)
    return {"id": torch.arange(3), "net_input": inputs, "target": target, "ntokens": 48 - padding, "nsentences": 3}


def update(trainer: Any, seed: int, make: Callable[[int], dict[str, Any]] = make_batch) -> Any:
    """One update on a batch of that seed; what the trainer returns."""
    with metrics.aggregate("train_inner"):
        return trainer.train_step([make(seed)])
