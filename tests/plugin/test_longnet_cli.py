"""LongNet through fairseq's own commands."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.fairseq_cli import Finished, run_fairseq
from tests.plugin.language_models import (
    check_beams_and_prompts,
    check_prefixes,
    evaluate,
    load,
    nll,
    tokens_of_the_test_set,
    train,
)

PATTERN = ["--segment-length", "[4,8,16]", "--dilated-ratio", "[1,2,4]"]


def train_longnet(data: Path, folder: Path, *flags: str) -> Finished:
    return train(data, folder, "longnet", *PATTERN, "--no-epoch-checkpoints", *flags)


@pytest.fixture(scope="session")
def run(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longnet")
    train_longnet(language_data, folder, "--max-update", "60", "--decoder-embed-dim", "32").check()
    return folder / "checkpoint_last.pt"


@pytest.mark.family
def test_scores_are_those_of_full_forwards(run: Path, language_data: Path) -> None:
    model, text = load(run, language_data), tokens_of_the_test_set(language_data)
    assert model.decoder.config.segment_lengths == (4, 8, 16)
    before = torch.cat((torch.tensor([2]), text))
    expected = sum(nll(model, before[start : start + 1], text[start : start + 32]) for start in range(0, len(text), 32))
    tokens, loss = evaluate(language_data, run)
    assert tokens == len(text) and loss == pytest.approx(expected / len(text), abs=2e-3)
    overrides = ["--model-overrides", "{'segment_length': '[4]', 'dilated_ratio': '[1]'}"]
    assert evaluate(language_data, run, *overrides)[1] != pytest.approx(loss, abs=2e-3)


def test_beams_and_prompts(run: Path, language_data: Path) -> None:
    check_beams_and_prompts(run, language_data)


def test_generate_continues_prefixes(run: Path, language_data: Path) -> None:
    check_prefixes(run, language_data)


def test_experts_dropout_and_flash_attention(language_data: Path, tmp_path: Path) -> None:
    """--flash-attention, which TorchScale demands, is at home on a CPU too."""
    flags = ["--moe-freq", "1", "--moe-expert-count", "4", "--criterion", "moe_cross_entropy", "--flash-attention"]
    train_longnet(language_data, tmp_path, *flags, "--attention-dropout", "0.1", "--checkpoint-activations").check()
    assert 0 < evaluate(language_data, tmp_path / "checkpoint_last.pt")[1] < 12


@pytest.mark.parametrize("arch", ["bert_magneto"])
def test_a_masked_model_with_segments(arch: str, language_data: Path, tmp_path: Path) -> None:
    train(language_data, tmp_path, arch, *PATTERN, "--xpos-rel-pos", "--no-epoch-checkpoints").check()
    encoder = load(tmp_path / "checkpoint_last.pt", language_data).encoder
    assert "segment_lengths=[4, 8, 16]" in repr(encoder.layers[0].self_attn)


@pytest.mark.parametrize("arch", ["retnet_base", "transformer_lm"])
def test_architectures_without_segments_say_who_has_them(arch: str, language_data: Path) -> None:
    flags = [language_data, "--task", "language_modeling", "--arch", arch, "--dropuot", "0", *PATTERN]
    lines = run_fairseq("train", flags).stderr.splitlines()
    assert "unrecognized arguments: --dropuot 0 --segment-length" in lines[-2]
    assert lines[-2].endswith("did you mean --dropout?")
    assert lines[-1].startswith("--segment-length and --dilated-ratio: for --arch longnet, s2t_longnet, b")
    assert "no such option" in lines[-1] and "dropuot" not in lines[-1]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_what_is_chosen(flag: str) -> None:
    """Options of the architecture, of the task and of the optimizer; stock lists none of them."""
    chosen = ["--arch", "longnet", "--task", "language_modeling", "--optimizer", "adam", flag]
    done = run_fairseq("train", chosen).check()
    for option in ("--dilated-ratio", "--moe-freq", "--tokens-per-sample", "--adam-betas", "--max-update"):
        assert option in done.stdout
    assert done.stdout.startswith("usage: fairseq-train")


def test_wrong_segments_are_spelt_as_flags(language_data: Path, tmp_path: Path) -> None:
    done = train(language_data, tmp_path, "longnet", "--segment-length", "[4,8]", "--dilated-ratio", "[1]")
    assert done.returncode == 1
    assert "--segment-length ([4, 8]) and --dilated-ratio ([1]) must have one entry per branch" in done.last_line
