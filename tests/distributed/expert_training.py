"""Training a translation model with experts in several gloo processes, or in one."""

from pathlib import Path
from typing import Any

import torch

from tests.fairseq_cli import Finished, run_fairseq, run_processes
from tests.plugin.shrunk import shrunk
from tests.plugin.translation_models import COMMON

ARCH = "mt_xmoe_small"
CRITERION = ["--criterion", "moe_label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
SGD = ["--optimizer", "sgd", "--lr", "0.1"]
ADAM = ["--optimizer", "adam", "--lr", "1e-2"]
SHARDED = ["--moe-checkpoint-format", "sharded"]
BATCHES = 4
"""Batches that make an update, over processes and --update-freq."""


def train(
    processes: int, data: Path, folder: Path, *flags: object, updates: int = 3, before: str = "", timeout: int = 120
) -> Finished:
    """Train with batches of 4 sentences, BATCHES of them an update."""
    arguments = [data, *shrunk(ARCH), *COMMON, *CRITERION, "--dropout", "0", "--batch-size", "4", "--clip-norm", "0.5"]
    arguments += ["--update-freq", BATCHES // processes, "--moe-gate-loss-wt", "0.1", "--max-update", updates]
    arguments += ["--save-dir", folder, *flags]
    if processes == 1:
        return run_fairseq("train", arguments)
    return run_processes(processes, "train", arguments, before=before, timeout=timeout)


def assert_same_state(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["state"].keys() == expected["state"].keys()
    for index, state in expected["state"].items():
        for name, value in state.items():
            if torch.is_tensor(value):
                assert actual["state"][index][name].shape == value.shape, (index, name)
                torch.testing.assert_close(actual["state"][index][name], value, atol=1e-3, rtol=1e-2)
