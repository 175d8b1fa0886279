"""torchscale-fairseq fill-masks: the likeliest pieces for the masks of a text."""

import random
import re
import shlex
from pathlib import Path

import pytest

from tests.fairseq_cli import Finished, run_beside_fairseq, run_fairseq
from tests.tools.in_process import run_tool

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
TINY = shlex.split(
    "--optimizer adam --lr 1e-2 --batch-size 32 --num-workers 0 --tokens-per-sample 16 --sample-break-mode eos "
    "--dropout 0 --required-batch-size-multiple 1 --log-format simple"
)
MASKED = shlex.split(
    "--task masked_lm --criterion masked_lm --arch bert_magneto_small --encoder-layers 1 --encoder-embed-dim 32 "
    "--encoder-ffn-embed-dim 64 --encoder-attention-heads 2 --attention-dropout 0 --max-update 60"
)
CAUSAL = shlex.split(
    "--task language_modeling --arch gpt_deepnorm_small --decoder-layers 1 --decoder-embed-dim 32 "
    "--decoder-ffn-embed-dim 64 --decoder-attention-heads 2 --max-update 1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds text, data and a model that has learnt which word follows which: a cycle of eight."""
    folder = tmp_path_factory.mktemp("masks")
    generator = random.Random(1)
    for split, size in (("train", 500), ("valid", 8), ("test", 8)):
        starts = [generator.randrange(len(WORDS)) for _ in range(size)]
        lines = [" ".join((WORDS * 2)[start : start + 7]) + "." for start in starts]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", folder / f"{split}.txt")]
    run_tool("data", "prepare-language", *splits, "--output", folder / "data", "--vocab-size", 285).check()
    run_fairseq("train", [folder / "data", *TINY, *MASKED, "--save-dir", folder / "masked"]).check()
    return folder


def fill_masks(folder: Path, *texts: str, count: int = 5, run: str = "masked") -> Finished:
    """Runs the script where fairseq is imported already."""
    (folder / "input").write_text("".join(f"{text}\n" for text in texts))
    files = [
        "--checkpoint",
        folder / run / "checkpoint_last.pt",
        "--data",
        folder / "data",
        "--input",
        folder / "input",
    ]
    return run_beside_fairseq(
        f"""
        from torchscale_fairseq.tools.command import main
        main({[str(word) for word in ["fill-masks", *files, "--top-k", count]]})
        """,
        plugin=False,
    )


def refuses(message: str, folder: Path, text: str, run: str = "masked") -> None:
    done = fill_masks(folder, text, run=run)
    assert done.returncode == 1
    assert done.last_line.startswith(f"torchscale-fairseq fill-masks: {message}")


def best(line: str) -> list[tuple[str, float]]:
    found = re.findall(r"(\S+) ([\d.]+)%", line)
    return [(piece, float(percentage)) for piece, percentage in found]


def test_fills_what_the_model_has_learnt(folder: Path) -> None:
    texts = ["alpha beta <mask> delta epsilon zeta eta.", "<mask> eta <mask> alpha beta gamma delta."]
    printed = fill_masks(folder, *texts, count=3).check().stdout.splitlines()
    lines = [line for line in printed if " | INFO | " not in line]
    assert [line for line in lines if not line.startswith(" ")] == texts
    rows = [best(line) for line in lines if line.startswith(" ")]
    assert [len(row) for row in rows] == [3, 3, 3]
    assert [row[0][0] for row in rows] == ["gamma", "zeta", "theta"]
    for row in rows:
        percentages = [percentage for _, percentage in row]
        assert percentages == sorted(percentages, reverse=True) and sum(percentages) <= 100.1


def test_probabilities_are_the_models(folder: Path) -> None:
    [[(word, percentage)]] = [
        best(line)
        for line in fill_masks(folder, "eta <mask>.", count=1).check().stdout.splitlines()
        if line.startswith(" ")
    ]
    code = f"""
        from fairseq import checkpoint_utils
        path = "{folder}/masked/checkpoint_last.pt"
        [model], _, task = checkpoint_utils.load_model_ensemble_and_task([path])
        tokens = task.source_dictionary.encode_line("<s> \u2581eta <mask> .", add_if_not_exist=False)
        scores = model.eval()(tokens[None].long())[0][0, 2].softmax(-1)
        print("word", task.source_dictionary[scores.argmax()], scores.max().item())
    """
    printed = run_beside_fairseq(code, plugin=True).check().stdout.splitlines()
    [(_, piece, expected)] = [line.split() for line in printed if line.startswith("word ")]
    assert piece == f"\u2581{word}"
    assert percentage == pytest.approx(100 * float(expected), abs=0.06)


def test_pieces_are_spelled_for_people(folder: Path) -> None:
    everything = fill_masks(folder, "alpha <mask>", count=286).check().stdout.splitlines()[-1]
    pieces = {piece for piece, _ in best(everything)}
    assert {*WORDS, "...a", ".", "</s>", "<0x41>"} <= pieces


def test_refuses_a_text_without_mask(folder: Path) -> None:
    """The lines around it are filled, and an empty one stays empty."""
    done = fill_masks(folder, "alpha <mask>.", "", "alpha beta", "beta <mask>.")
    assert done.returncode == 1
    message = "line 3: 'alpha beta' has no <mask>; write it in place of a word"
    assert done.last_line == f"torchscale-fairseq fill-masks: {message}"
    lines = [line for line in done.stdout.splitlines() if " | INFO | " not in line]
    assert [line for line in lines if not line.startswith(" ")] == ["alpha <mask>.", "", "beta <mask>."]
    assert sum(line.startswith(" ") for line in lines) == 2


def test_empty_lines_are_no_failure(folder: Path) -> None:
    fill_masks(folder, "", "alpha <mask>").check()


def test_refuses_a_text_beyond_the_model(folder: Path) -> None:
    text = "<mask>" + " alpha" * 14
    fill_masks(folder, text.removesuffix(" alpha")).check()
    refuses(
        f"line 1: '{text[:40]}...' is 17 tokens with <s> and </s>, but the model reads 16; shorten it", folder, text
    )


def test_refuses_a_causal_model(folder: Path) -> None:
    run_fairseq("train", [folder / "data", *TINY, *CAUSAL, "--save-dir", folder / "causal"]).check()
    message = f"{folder}/causal/checkpoint_last.pt was trained with --task language_modeling; a model of --task masked"
    refuses(message, folder, "alpha <mask>", run="causal")


def test_names_the_file_that_it_cannot_read(folder: Path) -> None:
    refuses(f"Model file not found: {folder}/nowhere/checkpoint_last.pt", folder, "alpha <mask>", run="nowhere")


def test_refuses_no_candidates(folder: Path) -> None:
    done = fill_masks(folder, "alpha <mask>", count=0)
    assert done.returncode == 2
    assert "argument --top-k: 0 must be a whole number of at least 1" in done.last_line
