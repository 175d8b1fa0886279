"""Updates that are recorded equal updates as usual, by graphs that are emulated on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

import torchscale_fairseq.hooks.training.trainer as trainer_module
from tests.checkpoints import assert_same_weights
from tests.emulated_graphs import EMULATING, emulate
from tests.fairseq_cli import run_processes
from tests.helpers import assert_close
from tests.image_updates import image_words
from tests.plugin.trainers import MASKED, make_batch, make_trainer, masked_batch

DROPOUT = ["--dropout", "0.1", "--attention-dropout", "0.1", "--activation-dropout", "0.1"]


@pytest.mark.parametrize("freq", [1, 2])
def test_images(freq: int, tmp_path: Path) -> None:
    """Also where gradients of two batches are added."""
    words = [*image_words(tmp_path / "data"), "--cpu", "--update-freq", freq]
    for name, before in (("recorded", EMULATING), ("usual", "")):
        done = run_processes(1, "train", [*words, "--save-dir", tmp_path / name], before=before).check()
        assert (done.output.count("replayed") >= 4) == (name == "recorded"), done.output
    assert_same_weights(tmp_path / "recorded", tmp_path / "usual", 1e-6)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("precision", [[], ["--bf16"]], ids=str)
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_texts(
    kind: str,
    precision: list[str],
    accumulated: int,
    language_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers drawn for dropout are those of the update, too."""
    given = {"causal": ("gpt_magneto_small", ["--criterion", "linear_cross_entropy"], make_batch)}
    given["masked"] = ("bert_magneto_small", MASKED, masked_batch)
    arch, flags, make = given[kind]
    flags = [*flags, *DROPOUT, *precision, "--optimizer", "fused_adam_torch", "--lr", "1e-3"]

    def train() -> tuple[Any, torch.Tensor]:
        trainer = make_trainer(language_data, tmp_path, *flags, arch=arch)
        batches = [[make(10 * number + i) for i in range(accumulated)] for number in range(10)]
        return trainer, torch.tensor([trainer.train_step(samples)["loss"] for samples in batches])

    _, usual = train()
    emulate(monkeypatch.setattr)
    recorded, found = train()
    assert recorded.task.train_step.recordings >= accumulated
    assert isinstance(recorded.task.train_step, trainer_module.StepGraphs)
    assert_close(found, usual, "bfloat16" if precision else "float32")  # sums begin at other addresses
