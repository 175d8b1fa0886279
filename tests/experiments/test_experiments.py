"""The experiments' shared pieces, and each experiment in its small form."""

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.experiments import associative_recall, common, longnet_distance
from tests.fairseq_cli import REPOSITORY, TOOL, run_program


def test_learning_rate_rises_and_falls() -> None:
    training = common.Training(learning_rate=1.0, updates=10, warmup=4, batch=1, length=2, seed=0)
    rates = [training.rate(update) for update in range(10)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == max(rates) == pytest.approx(1.0)
    assert rates[5:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_entropy_of_bytes() -> None:
    assert common.unigram_entropy(b"aabc") == pytest.approx(1.5 * math.log(2))


def test_windows_are_pieces_of_the_text() -> None:
    text = common.as_tensor(bytes(range(50)), "cpu")
    windows = common.draw_windows(text, 20, 7, torch.Generator().manual_seed(0))
    assert windows.shape == (20, 7) and (windows.diff(dim=1) == 1).all()
    assert len(windows[:, 0].unique()) > 5


def test_residual_schemes() -> None:
    from torchscale_fairseq import DecoderConfig

    def config(residual: str) -> DecoderConfig:
        return DecoderConfig(**common.side_options(["decoder"], residual, layers=2, width=8, heads=2))

    assert not config("post-LN").decoder_pre_norm and not config("post-LN").uses_subln
    assert config("pre-LN").decoder_pre_norm and not config("pre-LN").uses_subln
    assert config("SubLN").uses_subln and config("DeepNorm").deepnorm


def test_training_learns() -> None:
    from torchscale_fairseq import Decoder, DecoderConfig

    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**common.side_options(["decoder"], "SubLN", layers=1, width=16, heads=2)))
    text = common.as_tensor(b"abcd" * 100, "cpu")
    training = common.Training(learning_rate=1e-2, updates=60, warmup=5, batch=8, length=9, seed=0)
    losses = common.train(model, lambda windows, _: common.next_byte_loss(model, windows), text, training)
    assert losses[0] > 2 and losses[-1] < 0.5


def test_examples_of_associative_recall() -> None:
    """Four pairs, then each key once more at an even place, where its value is asked for."""
    tokens, targets = associative_recall.draw_examples(50, 64, torch.Generator())
    assert tokens.shape == targets.shape == (50, 64) and tokens.min() >= 2 and tokens.max() < 256
    for row, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(row[:8:2], row[1:8:2], strict=True))
        places = [place for place, value in enumerate(asked) if value >= 0]
        assert len(pairs) == len(set(pairs.values())) == 4 == len(places)
        assert all(place >= 8 and place % 2 == 0 for place in places)
        assert {row[place]: asked[place] for place in places} == pairs


PUBLISHED = ["deepnorm_depth", "subln_learning_rates", "xpos_extrapolation", "bitnet_perplexity"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_reports_are_of_these_scripts(name: str) -> None:
    report = json.loads((REPOSITORY / "docs" / "claims" / f"{name}.json").read_text())
    assert report["experiment"] == name and not report["small"]
    assert report["command"].startswith(f"python -m scripts.experiments.{name} --device cuda")


@pytest.mark.parametrize("name", ["deepnorm_depth", "xpos_extrapolation"])
def test_published_reports_have_the_settings_of_their_scripts(name: str) -> None:
    report = json.loads((REPOSITORY / "docs" / "claims" / f"{name}.json").read_text())
    planned = [dataclasses.asdict(run) for run in importlib.import_module(f"scripts.experiments.{name}").runs(False, 1)]
    assert [{key: run[key] for key in planned[0]} for run in report["runs"]] == planned


@pytest.mark.parametrize("name", ["longnet_distance", "associative_recall"])
def test_reports_of_a_cpu_are_of_their_scripts(name: str) -> None:
    report = json.loads((REPOSITORY / "docs" / "claims" / f"{name}.json").read_text())
    assert report["experiment"] == name and not report["small"]
    assert report["command"].startswith(f"python -m scripts.experiments.{name} --processes 2")


def test_report_on_distance_is_of_its_script() -> None:
    """What docs/claims says of it."""
    report = json.loads((REPOSITORY / "docs" / "claims" / "longnet_distance.json").read_text())
    full, near = ({row["length"]: row["accuracy"] for row in run["accuracy"]} for run in report["runs"])
    assert full[4096] > 0.95 and near[256] > 0.85 and near[4096] < 0.25


def test_largest_segment_alone_shows_a_planted_pair() -> None:
    """By the definition: with it every query sees the value at once; without it not even in two steps."""
    from torchscale_fairseq.core.ops.dilated_pattern import Branch, shown_keys

    planted, values = longnet_distance.plant(torch.zeros(6, 512, dtype=torch.long), torch.Generator().manual_seed(0))
    full, near = longnet_distance.runs(True, 1)
    heads = torch.empty(1, 512, longnet_distance.HEADS, 1)
    sees = {}
    for run in (full, near):
        shown = [shown_keys(heads, Branch(*branch), None) for branch in zip(run.segments, run.ratios, strict=True)]
        sees[run.model] = (torch.stack(shown).sum(0).amax(1)[0] > 0).float()
    for tokens, asked in zip(planted, values, strict=True):
        queries = (asked >= 0).nonzero().flatten()
        value = (tokens == asked[queries[0]]).nonzero().item()
        assert queries.min() - value > 200 and len(queries) == 32
        assert (tokens[queries] == tokens[value - 1]).all(), "the key stands before its value, and again at the queries"
        assert sees[full.model][queries, value].all()
        assert not (sees[near.model] @ sees[near.model])[queries, value].any()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments") / "text"
    run_program([*TOOL, "data", "python-corpus", folder]).check()
    return folder


def small(name: str, text: Path | None, output: Path) -> dict[str, Any]:
    """The report of an experiment in its small form; text: None if it reads none."""
    corpus = [] if text is None else ["--text", text]
    words = [sys.executable, "-m", f"scripts.experiments.{name}", "--small", *corpus, "--output", output]
    run_program(words, timeout=1200).check()
    return json.loads((output / f"{name}.json").read_text())


@pytest.mark.slow
def test_deepnorm_trains_where_post_norm_does_not(text: Path, tmp_path: Path) -> None:
    runs = {(run["residual"], run["layers"]): run for run in small("deepnorm_depth", text, tmp_path)["runs"]}
    post_norm, deepnorm = runs["post-LN", 24], runs["DeepNorm", 24]
    assert deepnorm["held_out_loss"] < post_norm["held_out_loss"] - 0.2
    assert post_norm["gradient_norms_after"][0] < 0.01 * post_norm["gradient_norms_after"][-1]
    for norms in (deepnorm["gradient_norms_before"], deepnorm["gradient_norms_after"]):
        assert max(norms) < 5 * min(norms)


@pytest.mark.slow
def test_subln_takes_larger_learning_rates_than_post_norm(text: Path, tmp_path: Path) -> None:
    report = small("subln_learning_rates", text, tmp_path)
    loss = {(r["kind"], r["residual"], r["training"]["learning_rate"]): r["held_out_loss"] for r in report["runs"]}
    for kind, rate in (("causal", 1e-1), ("encoder-decoder", 1e-1), ("masked", 1e-2)):
        assert loss[kind, "SubLN", rate] < report["text"]["unigram_entropy"] - 0.3, f"{kind} learned frequencies alone"
        assert loss[kind, "SubLN", rate] < loss[kind, "post-LN", rate] - 0.1


@pytest.mark.slow
def test_xpos_reads_longer_texts(text: Path, tmp_path: Path) -> None:
    """At sixteen times the length of training blockwise attention loses nothing, and the decay helps without it."""
    last = {
        (run["positions"], row["attention"], row["length"]): row["last"]
        for run in small("xpos_extrapolation", text, tmp_path)["runs"]
        for row in run["perplexities"]
    }
    shortest, longest = min(k[2] for k in last), max(k[2] for k in last)
    assert longest == 16 * shortest
    assert last["xPos", "blockwise", longest] < 1.02 * last["xPos", "blockwise", shortest]
    assert last["xPos", "full", longest] < 0.95 * last["rotary", "full", longest]
    for positions in ("rotary", "sinusoidal"):
        assert last[positions, "full", longest] > 1.1 * last[positions, "full", shortest]


@pytest.mark.slow
def test_bitnet_stays_near_full_precision(text: Path, tmp_path: Path) -> None:
    loss = {run["weights"]: run["held_out_loss"] for run in small("bitnet_perplexity", text, tmp_path)["runs"]}
    for weights in ("b1.58", "b1.58, paper", "b1"):
        assert math.exp(loss[weights] - loss["full precision"]) < 1.1


@pytest.mark.slow
def test_longnet_needs_its_largest_segment(text: Path, tmp_path: Path) -> None:
    report = small("longnet_distance", text, tmp_path)
    full, near = ({row["length"]: row["accuracy"] for row in run["accuracy"]} for run in report["runs"])
    assert full[512] > 0.9 and near[128] > 0.7
    assert near[512] < 0.25, "one in eight is a guess"


@pytest.mark.slow
def test_attention_recalls_pairs(tmp_path: Path) -> None:
    """gpt finds nearly every value; RetNet, so far, learns at least which values were listed."""
    recall = {run["model"]: run["recall"] for run in small("associative_recall", None, tmp_path)["runs"]}
    assert recall["gpt"] > 0.9 and recall["RetNet"] > 0.2
