"""--pack-documents through fairseq's own commands."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("sentencepiece")

import torch
from fairseq.data import Dictionary

from tests.data.corpora import made_corpus
from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.documents import starts_after_empty_lines
from torchscale_fairseq.tasks.pretraining import PretrainingConfig, PretrainingTask

LENGTH = 1024
"""Tokens of a sample, which holds all documents of the validation text."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_corpus(tmp_path_factory.mktemp("packed") / "data")


def train(data: Path, save_dir: Path, arch: str, *flags: object) -> Finished:
    words = [data, "--task", "pretraining", *shrunk(arch), *FEW_UPDATES, "--cpu", "--save-dir", save_dir]
    words += ["--tokens-per-sample", LENGTH, "--batch-size", "8", "--pack-documents", "--no-epoch-checkpoints"]
    return run_fairseq("train", [*words, "--max-update", "2", *flags])


@pytest.mark.slow
def test_packed_rows_score_documents_as_rows_of_their_own_do(shards: Path, tmp_path: Path) -> None:
    """fairseq-eval-lm of packed rows gives the loss of samples that hold one document each."""
    train(shards, tmp_path, "gpt_deepnorm", "--sample-break-mode", "none").check()
    words = [shards, "--task", "pretraining", "--gen-subset", "valid", "--path", tmp_path / "checkpoint_last.pt"]
    words += ["--cpu", "--tokens-per-sample", LENGTH, "--batch-size", "4", "--sample-break-mode"]
    losses = []
    for flags in (["complete", "--pack-documents"], ["complete_doc"]):
        output = run_fairseq("eval_lm", [*words, *flags]).check().output
        losses.append(float(re.search(r"Loss \(base 2\): ([\d.]+)", output)[1]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


@pytest.mark.slow
def test_masked_models_train(shards: Path, tmp_path: Path) -> None:
    flags = ["--criterion", "masked_lm", "--max-source-positions", LENGTH]
    train(shards, tmp_path, "bert_magneto", *flags).check()


@pytest.mark.slow
def test_language_modeling_trains_on_packed_rows(language_data: Path) -> None:
    words = [language_data, "--task", "language_modeling", *shrunk("gpt_xpos"), *FEW_UPDATES, "--cpu"]
    run_fairseq("train", [*words, "--tokens-per-sample", "32", "--no-save", "--pack-documents"]).check()


def test_empty_lines_tell_documents_apart() -> None:
    starts = starts_after_empty_lines(torch.tensor([[2, 5, 2, 2, 6, 7, 2, 1, 1]]), end_of_line=2, padding=1)
    assert starts.nonzero().tolist() == [[0, 3], [0, 7]]


def test_refusals(shards: Path, tmp_path: Path) -> None:
    refused = train(shards, tmp_path, "longnet").last_line
    assert "--pack-documents needs dense attention or retention, but --arch longnet has dilated" in refused
    with pytest.raises(InputError, match="--pack-documents has no use with --sample-break-mode eos"):
        PretrainingTask(PretrainingConfig(pack_documents=True, sample_break_mode="eos"), Dictionary())
