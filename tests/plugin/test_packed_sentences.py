"""--pack-sentences: batches of translation without padding train what padded ones do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fairseq")

import torch

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.training.packed_sentences import check_packed_sentences, packed_sentences

PAD = 1


def train(data: Path, save_dir: Path, arch: str, *flags: str) -> Finished:
    words = [data, "--task", "translation", "--source-lang", "en", "--target-lang", "de", *shrunk(arch), *FEW_UPDATES]
    words += ["--cpu", "--dropout", "0", "--no-epoch-checkpoints", "--optimizer", "sgd", "--save-dir", save_dir]
    return run_fairseq("train", [*words, "--criterion", "label_smoothed_cross_entropy", *flags])


def test_a_batch_as_one_row() -> None:
    source = torch.tensor([[PAD, PAD, 7, 2], [8, 9, 10, 2]])
    previous, target = torch.tensor([[2, 5, 6], [2, 4, PAD]]), torch.tensor([[5, 6, 2], [4, 2, PAD]])
    inputs = {"src_tokens": source, "src_lengths": torch.tensor([2, 4]), "prev_output_tokens": previous}
    batch = packed_sentences({"net_input": inputs, "target": target, "ntokens": 5, "nsentences": 2}, PAD)
    packed = {name: value.tolist() for name, value in batch["net_input"].items()}
    assert packed["src_tokens"] == [[7, 2, 8, 9, 10, 2]] and packed["src_lengths"] == [6]
    assert packed["prev_output_tokens"] == [[2, 5, 6, 2, 4]] and batch["target"].tolist() == [[5, 6, 2, 4, 2]]
    assert packed["source_starts"] == [[True, False, True, False, False, False]]
    assert packed["document_starts"] == [[True, False, False, True, False]] and batch["ntokens"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sentence_avg": True}, "--pack-sentences cannot be combined with --sentence-avg"),
        ({"ignore_prefix_size": 1}, "--pack-sentences cannot be combined with --ignore-prefix-size"),
        ({"_name": "composite_loss"}, "--pack-sentences cannot be combined with --criterion composite_loss"),
    ],
)
def test_what_cannot_be_packed(options: dict[str, object], message: str) -> None:
    defaults = {"sentence_avg": False, "ignore_prefix_size": 0, "_name": "cross_entropy"}
    section, model = SimpleNamespace(**{**defaults, **options}), torch.nn.Module()
    cfg: Any = SimpleNamespace(optimization=section, criterion=section)
    check_packed_sentences(cfg, model)
    model.packs_sentences = True  # type: ignore[assignment]
    with pytest.raises(OptionError, match=message):
        check_packed_sentences(cfg, model)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mt_deepnorm", "mt_magneto"])
def test_packed_and_padded_batches_train_the_same_weights(arch: str, translation_data: Path, tmp_path: Path) -> None:
    for name, flags in (("padded", ()), ("packed", ("--pack-sentences",))):
        train(translation_data, tmp_path / name, arch, *flags).check()
    assert_same_weights(tmp_path / "padded", tmp_path / "packed", 1e-5)


@pytest.mark.slow
def test_retention_is_refused(translation_data: Path, tmp_path: Path) -> None:
    refused = train(translation_data, tmp_path, "mt_retnet", "--pack-sentences").last_line
    assert "--pack-sentences needs a decoder with attention, but --arch mt_retnet has one with retention" in refused
