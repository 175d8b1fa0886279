"""RetNet through fairseq's own commands."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.checkpoint_utils import load_model_ensemble_and_task

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import FEW_UPDATES, Finished, column, run_fairseq
from tests.plugin.language_models import (
    LENGTH,
    check_beams_and_prompts,
    check_prefixes,
    evaluate,
    interact,
    load,
)
from tests.plugin.shrunk import shrunk
from tests.tools.official_checkpoints import case_of, official_checkpoint, write_dictionaries
from torchscale_fairseq.models.retnet import RetNetLanguageModel

CHUNKS = ["--chunkwise-recurrent", "--recurrent-chunk-size", "5"]


def train(data: Path, save_dir: Path, *flags: str) -> Finished:
    words = [data, "--task", "language_modeling", *shrunk("retnet_base"), *FEW_UPDATES, "--cpu", "--save-dir", save_dir]
    words += ["--tokens-per-sample", LENGTH, "--required-batch-size-multiple", "1", "--no-epoch-checkpoints"]
    return run_fairseq("train", [*words, *flags])


@pytest.fixture(scope="session")
def run(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retnet")
    flags = ["--max-update", "60", "--decoder-embed-dim", "32", "--decoder-value-embed-dim", "48", *CHUNKS]
    train(language_data, folder, *flags).check()
    return folder / "checkpoint_last.pt"


@pytest.mark.family
def test_scores_are_the_same_in_every_form(run: Path, language_data: Path) -> None:
    """On the training text, of which it has learnt more than the words' frequencies."""
    flags = ["--gen-subset", "train"]
    tokens, chunkwise = evaluate(language_data, run, *flags)
    overrides = ["--model-overrides", "{'chunkwise_recurrent': False}"]
    assert evaluate(language_data, run, *flags, *overrides) == (tokens, pytest.approx(chunkwise, abs=1e-3))
    assert 0 < chunkwise < 3


def test_beams_and_prompts(run: Path, language_data: Path) -> None:
    check_beams_and_prompts(run, language_data)


def test_sampling(run: Path, language_data: Path) -> None:
    flags = ["--beam", "2", "--nbest", "2", "--sampling", "--sampling-topp", "0.9", "--max-len-b", "12", "--seed", "3"]
    first, second = (interact(language_data, run, "w1 w2\n", *flags).check().stdout for _ in range(2))
    assert column(first, "H") == column(second, "H") and len(column(first, "H")[0]) == 2


def test_generate_continues_prefixes(run: Path, language_data: Path) -> None:
    check_prefixes(run, language_data)


def test_resume_continues(language_data: Path, tmp_path: Path) -> None:
    """In batches of the whole text, since fairseq draws others after it has been interrupted."""
    flags = ["--batch-size", "100"]
    train(language_data, tmp_path / "straight", *flags).check()
    train(language_data, tmp_path / "resumed", *flags, "--max-update", "2").check()
    train(language_data, tmp_path / "resumed", *flags).check()
    assert_same_weights(tmp_path / "straight", tmp_path / "resumed", 1e-6)


@pytest.mark.parametrize("flags", [["--fp16"], ["--memory-efficient-bf16"], ["--checkpoint-activations"]])
def test_precisions_and_recomputation(flags: list[str], language_data: Path, tmp_path: Path) -> None:
    train(language_data, tmp_path, *flags, *CHUNKS, "--fp16-init-scale", "4").check()


def test_from_pretrained(run: Path) -> None:
    hub = RetNetLanguageModel.from_pretrained(str(run.parent), "checkpoint_last.pt")
    assert hub.sample("w1 w2", beam=1, max_len_b=10).startswith("w1 w2")


def test_official_checkpoints_need_their_option(tmp_path: Path) -> None:
    """One that TorchScale's fairseq wrote, read without torchscale-fairseq convert from-torchscale."""
    case = case_of("fs_retnet")
    write_dictionaries(tmp_path, case)
    torch.save(official_checkpoint(case, tmp_path), tmp_path / "official.pt")
    with pytest.raises(ValueError, match=r"torchscale-fairseq convert from-torchscale"):
        load_model_ensemble_and_task([str(tmp_path / "official.pt")])


def test_experts_in_every_other_layer(language_data: Path, tmp_path: Path) -> None:
    """Trained, and decoded with beams."""
    flags = ["--moe-freq", "2", "--moe-expert-count", "4", "--decoder-layers", "4", "--criterion", "moe_cross_entropy"]
    train(language_data, tmp_path, *flags).check()
    model = load(tmp_path / "checkpoint_last.pt", language_data)
    assert [layer.moe_layer is not None for layer in model.decoder.layers] == [False, True, False, True]
    output = interact(language_data, tmp_path / "checkpoint_last.pt", "w1 w2\n", "--beam", "3", "--max-len-b", "8")
    assert column(output.check().stdout, "H")[0][0].startswith("w1 w2")
