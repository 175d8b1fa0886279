"""Our translation models through fairseq's own commands."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.models import MODEL_REGISTRY

from tests.checkpoints import assert_same_weights, weights
from tests.fairseq_cli import column, run_fairseq, run_program, tiny_translation_data
from tests.plugin.translation_models import ARCH, train
from torchscale_fairseq.models import translation

TRANSLATION = sorted(
    name
    for name, cls in MODEL_REGISTRY.items()
    if issubclass(cls, translation.TranslationModel)
    and cls.__module__.startswith("torchscale_fairseq")
    and name.rpartition("_")[0] not in MODEL_REGISTRY
)
"""One of each family; other sizes differ in what ``shrunk`` sets."""
WIDER = ["--encoder-embed-dim", "32", "--decoder-embed-dim", "32"]
SENTENCES = 21


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_translation_data(tmp_path_factory.mktemp("translation-data"))


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained until it knows some of its sentences, with checkpoints at updates 250 and 300."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--max-update", "300", "--lr", "5e-3", *WIDER]
    flags += ["--save-interval-updates", "50", "--keep-interval-updates", "2", "--no-epoch-checkpoints"]
    train(data, folder, *flags, "--tensorboard-logdir", str(folder / "tb")).check()
    return folder


def generate(data: Path, path: Path | str, *flags: str) -> str:
    arguments = [data, "--path", path, "--cpu", "--batch-size", "8", "--max-len-b", "15", *flags]
    return run_fairseq("generate", arguments).check().stdout


@pytest.mark.parametrize("arch", TRANSLATION)
@pytest.mark.family
def test_every_model_trains_and_generates(arch: str, data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path, arch=arch).check()
    assert "num_updates=4" in result.output.replace(" ", "") or "num_updates: 4" in result.output
    assert len(column(generate(data, tmp_path / "checkpoint_last.pt", "--beam", "2"), "H")) == SENTENCES


def test_learns(run: Path, data: Path) -> None:
    """The 83 training sentences in capitals; by chance, one word in 30 would be right."""
    output = generate(data, run / "checkpoint_last.pt", "--beam", "4", "--gen-subset", "train")
    words = [
        (hypothesis == reference)
        for i, (text,) in column(output, "H").items()
        for hypothesis, reference in zip(text.split(), column(output, "T")[i][0].split(), strict=False)
    ]
    assert sum(words) / len(words) > 0.5


def test_beam_search_matches_full_forwards(run: Path, data: Path) -> None:
    """--score-reference scores without a cache; so do the hypotheses of a beam when they are the reference."""
    checkpoint = run / "checkpoint_last.pt"
    output = generate(data, checkpoint, "--beam", "4", "--prefix-size", "100")
    forced = {
        i: [float(s) for s in scores] for i, scores in column(output, "P").items() for scores in [scores[0].split()]
    }
    reference = generate(data, checkpoint, "--score-reference")
    scored = {i: [float(s) for s in scores[0].split()] for i, scores in column(reference, "P").items()}
    assert len(scored) == len(forced) == SENTENCES
    for i, scores in scored.items():
        assert forced[i] == pytest.approx(scores, abs=2e-4)


def test_nbest_and_length_penalty(run: Path, data: Path) -> None:
    output = generate(data, run / "checkpoint_last.pt", "--beam", "5", "--nbest", "3")
    hypotheses, scores = column(output, "H"), column(output, "H", 1)
    assert all(len(h) == len(set(h)) == 3 for h in hypotheses.values())
    assert all(s == sorted(s, key=float, reverse=True) for s in scores.values())
    longer = generate(data, run / "checkpoint_last.pt", "--beam", "5", "--lenpen", "8")

    def words(text: dict[int, list[str]]) -> int:
        return sum(len(h[0].split()) for h in text.values())

    assert words(column(longer, "H")) >= words(hypotheses)


def test_sampling(run: Path, data: Path) -> None:
    flags = ["--sampling", "--sampling-topk", "5", "--beam", "1", "--nbest", "1"]
    one, again, other = (
        column(generate(data, run / "checkpoint_last.pt", *flags, "--seed", seed), "H") for seed in ("1", "1", "2")
    )
    assert one == again and one != other
    nucleus = ["--sampling", "--sampling-topp", "0.9", "--beam", "2", "--nbest", "2"]
    assert len(column(generate(data, run / "checkpoint_last.pt", *nucleus), "H")) == SENTENCES


def test_prefix(run: Path, data: Path) -> None:
    output = generate(data, run / "checkpoint_last.pt", "--beam", "3", "--prefix-size", "2")
    targets = column(output, "T")
    for i, (hypothesis,) in column(output, "H").items():
        prefix = targets[i][0].split()[:2]
        assert hypothesis.split()[: len(prefix)] == prefix


def test_ensemble_of_two_checkpoints(run: Path, data: Path) -> None:
    paths = sorted(run.glob("checkpoint_*_*.pt"))[:2]
    scores = [column(generate(data, p, "--score-reference"), "P") for p in paths]
    both = column(generate(data, ":".join(map(str, paths)), "--score-reference"), "P")
    for i in both:
        one, other, mean = (torch.tensor([float(x) for x in s[i][0].split()]) for s in (*scores, both))
        expected = ((2**one + 2**other) / 2).log2()  # fairseq prints logarithms to base 2
        torch.testing.assert_close(mean, expected, atol=2e-4, rtol=0)


def test_alignment_is_refused(run: Path, data: Path) -> None:
    arguments = [data, "--path", run / "checkpoint_last.pt", "--cpu", "--batch-size", "8", "--print-alignment"]
    result = run_fairseq("generate", arguments)
    assert result.returncode != 0
    assert "--print-alignment needs attention weights" in result.last_line


def test_left_padded_sources_and_batches_do_not_matter(run: Path, data: Path) -> None:
    """One sentence at a time or eight padded ones give the same translations and scores."""
    together = column(generate(data, run / "checkpoint_last.pt", "--beam", "3"), "P")
    alone = column(generate(data, run / "checkpoint_last.pt", "--beam", "3", "--batch-size", "1"), "P")
    for i in together:
        assert [float(x) for x in together[i][0].split()] == pytest.approx(
            [float(x) for x in alone[i][0].split()], abs=2e-4
        )


def test_resume_continues(data: Path, tmp_path: Path) -> None:
    """4 updates and then 4 more give the weights of 8 in a row."""
    train(data, tmp_path / "straight", "--max-update", "8").check()
    train(data, tmp_path / "resumed").check()
    second = train(data, tmp_path / "resumed", "--max-update", "8").check()
    assert "@ 4 updates" in second.output
    assert_same_weights(tmp_path / "straight", tmp_path / "resumed", 1e-6)


def test_finetune_from_model(run: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--finetune-from-model", str(run / "checkpoint_last.pt"), "--max-update", "1", *WIDER]
    result = train(data, tmp_path, *flags)
    assert "loading pretrained model from" in result.check().output
    change = max((weights(run)[n] - w).abs().max().item() for n, w in weights(tmp_path).items())
    assert 0 < change < 0.05


SLOW = [pytest.param(f"--memory-efficient-{half}", marks=pytest.mark.slow) for half in ("fp16", "bf16")]


@pytest.mark.parametrize("flag", ["--fp16", "--bf16", "--amp", *SLOW])
def test_precisions(flag: str, data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path, flag, "--fp16-init-scale", "4").check()
    losses = [float(x) for x in re.findall(r"\| loss=([\d.]+)|loss=([\d.]+)", result.output) for x in x if x]
    assert losses and all(0 < x < 10 for x in losses)
    half = "--bf16" if "bf16" in flag else "--fp16"
    assert len(column(generate(data, tmp_path / "checkpoint_last.pt", half), "H")) == SENTENCES


def test_update_freq_equals_larger_batches(data: Path, tmp_path: Path) -> None:
    """An epoch of 83 sentences as one batch, or as four that are added up."""
    flags = ["--max-update", "3", "--optimizer", "sgd", "--lr", "0.1", "--required-batch-size-multiple", "1"]
    train(data, tmp_path / "whole", *flags, "--batch-size", "100").check()
    train(data, tmp_path / "parts", *flags, "--batch-size", "21", "--update-freq", "4").check()
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", 1e-5)


@pytest.mark.family
def test_validate_interactive_and_score(run: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoint_last.pt"
    validated = run_fairseq("validate", [data, "--path", checkpoint, "--cpu", "--batch-size", "8"]).check()
    assert re.search(r"\| valid \| .*loss [\d.]+", validated.output), validated.output
    interactive = run_fairseq(
        "interactive", [data, "--path", checkpoint, "--cpu", "--beam", "3"], stdin="w1 w2 w3\nw4 w5\n"
    ).check()
    assert len(column(interactive.stdout, "H")) == 2
    output = generate(data, checkpoint, "--beam", "3")
    for tag, name in (("H", "hyp"), ("T", "ref")):
        (tmp_path / name).write_text("".join(f"{text[0]}\n" for _, text in sorted(column(output, tag).items())))
    scored = run_program(["fairseq-score", "--sys", tmp_path / "hyp", "--ref", tmp_path / "ref"]).check()
    assert re.search(r"BLEU4 = [\d.]+", scored.stdout) and "BLEU4" in output


def test_eval_bleu_while_training(data: Path, tmp_path: Path) -> None:
    flags = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 12}', "--eval-bleu-print-samples"]
    result = train(data, tmp_path, *flags, "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric")
    assert re.search(r"\| bleu [\d.]+", result.check().output)


def test_tensorboard_files_are_read_back(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tb" / "train_inner"))
    events.Reload()
    losses = [e.value for e in events.Scalars("loss")]
    assert len(losses) > 50 and losses[-1] < losses[0] / 2


def test_from_pretrained(run: Path, data: Path) -> None:
    model = MODEL_REGISTRY[ARCH].from_pretrained(str(run))
    translation = model.translate("w1 w2 w3", beam=3)
    output = run_fairseq(
        "interactive", [data, "--path", run / "checkpoint_best.pt", "--cpu", "--beam", "3"], stdin="w1 w2 w3\n"
    ).check()
    assert column(output.stdout, "H")[0][0] == translation
    with pytest.raises(FileNotFoundError, match=r"neither checkpoint_best.pt nor checkpoint_last.pt"):
        MODEL_REGISTRY[ARCH].from_pretrained(str(data))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder-layer", "2"], r"unrecognized arguments: --encoder-layer 2; did you mean --encoder-layers\?"),
        (["--moe-freq", "2"], r"--moe-freq \(2\) is above --encoder-layers \(1\)"),
        (["--subln"], "--deepnorm and --subln cannot both be on.*The architecture itself sets deepnorm=True"),
        (
            ["--encoder-attention-heads", "3"],
            r"--encoder-embed-dim \(16\) must be divisible by --encoder-attention-heads",
        ),
        (["--max-target-positions", "4"], r"has \d+ target tokens .* the model 4 target positions; shorten it"),
    ],
)
def test_bad_options_end_with_one_clear_message(flags: list[str], message: str, data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path, *flags)
    assert result.returncode != 0
    assert re.search(message, result.last_line), result.last_line


def test_truncated_checkpoint(run: Path, data: Path, tmp_path: Path) -> None:
    whole = (run / "checkpoint_last.pt").read_bytes()
    (tmp_path / "checkpoint_last.pt").write_bytes(whole[: len(whole) // 2])
    result = run_fairseq("generate", [data, "--path", tmp_path / "checkpoint_last.pt", "--cpu"])
    assert result.returncode != 0 and "checkpoint_last.pt" in result.last_line and "truncated" in result.last_line
    resumed = train(data, tmp_path)
    assert resumed.returncode != 0 and "checkpoint_last.pt" in resumed.last_line


def test_checkpoint_of_another_architecture(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_last.pt").write_bytes((run / "checkpoint_last.pt").read_bytes())
    result = train(data, tmp_path, "--max-update", "200", arch="mt_magneto_small")
    assert result.returncode != 0
    assert ARCH in result.last_line and "mt_magneto_small" in result.last_line, result.last_line
