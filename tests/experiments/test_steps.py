"""Experiments that are steps of commands: what they run, skip and say."""

import sys
from pathlib import Path

import pytest

from scripts.experiments import image_details, steps, xmoe_domains
from torchscale_fairseq.core.errors import InputError


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were run; each makes the directory that it names."""
    found: list[list[str]] = []

    def run(words: steps.Words) -> None:
        found.append([str(word) for word in words])

    monkeypatch.setattr(steps, "run", run)
    monkeypatch.setattr(xmoe_domains, "run", run)
    return found


def test_a_finished_training_is_skipped_until_its_options_change(ran: list[list[str]], tmp_path: Path) -> None:
    for options in (["--lr", "1"], ["--lr", "1"], ["--lr", "2"]):
        steps.train(tmp_path / "run", options)
    assert [words[:3] for words in ran] == [["fairseq-train", "--lr", "1"], ["fairseq-train", "--lr", "2"]]


def test_a_command_that_fails_ends_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torchscale-fairseq ended with exit code 1; mend"):
        steps.run(["torchscale-fairseq", "convert", "pack-bitnet", tmp_path / "none.pt", tmp_path / "out.pt"])


def test_domains(ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--output", tmp_path / "figures", "--work-dir", tmp_path, "--max-update", 3, "--", "--num-workers", "0"]
    monkeypatch.setattr(sys, "argv", ["xmoe_domains.py", *map(str, words)])
    xmoe_domains.conduct(xmoe_domains.parse_options())
    assert [command[0] for command in ran] == ["torchscale-fairseq"] * 2 + ["fairseq-train"] * 4 + [
        "torchscale-fairseq"
    ]
    for command in ran[2:6]:
        assert command[command.index("--max-update") + 1] == "3" and "--num-workers" in command and "--cpu" in command
    assert (tmp_path / "figures").is_dir()


def test_details(ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["image_details.py", "--work-dir", str(tmp_path)])
    image_details.conduct(image_details.parse_options())
    starts = [command[-5] for command in ran if command[0] == "fairseq-train" and "--finetune-from-model" in command]
    assert len(ran) == 8 and len(starts) == 3
