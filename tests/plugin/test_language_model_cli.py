"""Our language models, causal and masked, through fairseq's own commands."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.data import Dictionary

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import FEW_UPDATES, Finished, column, run_fairseq
from tests.plugin.language_models import (
    CAUSAL,
    LENGTH,
    MASKED,
    evaluate,
    interact,
    load,
    nll,
    tokens_of_the_test_set,
    train,
)
from tests.plugin.shrunk import shrunk
from tests.printed import assert_printed_alike, validated
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.models import gpt

SHARED = {"gpt_magneto": "causal_run", "gpt_xpos": "xpos_run", "bert_magneto": "masked_run"}
"""Fixtures that hold a checkpoint of an architecture."""
SENTENCES = 21


@pytest.fixture(scope="session")
def causal_run(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    flags = ["--max-update", "60", "--decoder-embed-dim", "32", "--no-epoch-checkpoints"]
    train(language_data, folder, "gpt_magneto", *flags).check()
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def xpos_run(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xpos")
    train(language_data, folder, "gpt_xpos", "--max-update", "20", "--no-epoch-checkpoints").check()
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def masked_run(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    train(language_data, folder, "bert_magneto", "--no-epoch-checkpoints").check()
    return folder / "checkpoint_last.pt"


@pytest.fixture
def trained(language_data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """From an architecture to a checkpoint of it: the one that other tests use, or a fresh one."""

    def checkpoint(arch: str) -> Path:
        if arch in SHARED:
            return request.getfixturevalue(SHARED[arch])
        train(language_data, tmp_path, arch, "--no-epoch-checkpoints").check()
        return tmp_path / "checkpoint_last.pt"

    return checkpoint


@pytest.mark.parametrize("arch", CAUSAL)
@pytest.mark.family
def test_every_causal_model_trains_and_scores(arch: str, trained: Callable[[str], Path], language_data: Path) -> None:
    tokens, loss = evaluate(language_data, trained(arch))
    assert tokens == len(tokens_of_the_test_set(language_data))
    assert 0 < loss < 12


@pytest.mark.parametrize("arch", MASKED)
@pytest.mark.family
def test_every_masked_model_trains_and_validates(
    arch: str, trained: Callable[[str], Path], language_data: Path
) -> None:
    words = [language_data, "--task", "masked_lm", "--path", trained(arch), "--cpu"]
    output = run_fairseq("validate", [*words, "--batch-size", "8", "--valid-subset", "test"]).check().output
    assert 0 < float(re.search(r"\| test \| .*?loss ([\d.]+)", output)[1]) < 12


@pytest.mark.parametrize("window", [0, 8, 24])
def test_eval_lm_with_context_window(window: int, causal_run: Path, language_data: Path) -> None:
    """Each sample scores --tokens-per-sample less the window, after as much of the text before as fits."""
    model, text = load(causal_run, language_data), tokens_of_the_test_set(language_data)
    eos = torch.tensor([2])
    expected = 0.0
    for start in range(0, len(text), LENGTH - window):
        targets = text[start : start + LENGTH - window]
        before = torch.cat((eos, text))[max(0, start + 1 - (LENGTH - len(targets) + 1)) : start + 1]
        if window == 0:
            before = (torch.cat((eos, text)))[start : start + 1]
        expected += nll(model, before[-(window + 1) :], targets)
    flags = ["--context-window", str(window), "--batch-size", "1"] if window else []
    tokens, loss = evaluate(language_data, causal_run, *flags)
    assert tokens == len(text)
    assert loss == pytest.approx(expected / len(text), abs=2e-3)


def test_prompts_are_continued(causal_run: Path, language_data: Path) -> None:
    result = interact(language_data, causal_run, "w1 w2 w3\nw4\n", "--beam", "3", "--max-len-b", "12", "--nbest", "2")
    hypotheses = column(result.check().stdout, "H")
    assert all(h.startswith("w1 w2 w3") for h in hypotheses[0]) and all(h.startswith("w4") for h in hypotheses[1])
    assert any(len(h.split()) > 3 for h in hypotheses[0])


def test_beam_scores_are_those_of_full_forwards(causal_run: Path, language_data: Path) -> None:
    model, dictionary = load(causal_run, language_data), Dictionary.load(str(language_data / "dict.txt"))
    output = interact(language_data, causal_run, "w1 w2 w3\n", "--beam", "3", "--max-len-b", "12").check().stdout
    (hypothesis,), (scores,) = column(output, "H")[0], column(output, "P")[0]
    tokens = dictionary.encode_line(hypothesis, add_if_not_exist=False).long()
    assert -sum(map(float, scores.split())) == pytest.approx(nll(model, torch.tensor([2]), tokens), abs=2e-3)


def test_sampling(causal_run: Path, language_data: Path) -> None:
    def sample(*flags: str) -> list[str]:
        flags = ("--sampling", "--beam", "4", "--nbest", "4", "--max-len-b", "12", *flags)
        return column(interact(language_data, causal_run, "w1\n", *flags).check().stdout, "H")[0]

    def words(*flags: str) -> int:
        return len(set(" ".join(sample(*flags)).split()))

    assert sample("--seed", "1") == sample("--seed", "1") != sample("--seed", "2")
    assert words("--temperature", "0.2") < words("--temperature", "3")
    greedy = column(interact(language_data, causal_run, "w1\n", "--beam", "1", "--max-len-b", "12").stdout, "H")[0]
    assert set(sample("--sampling-topk", "1")) == set(sample("--sampling-topp", "0.001")) == set(greedy)


def test_generate_from_prefixes(causal_run: Path, language_data: Path) -> None:
    words = [language_data, "--task", "language_modeling", "--path", causal_run, "--cpu", "--batch-size", "8"]
    words += ["--sample-break-mode", "eos", "--prefix-size", "2", "--max-len-b", "12", "--beam", "2"]
    output = run_fairseq("generate", words).check().stdout
    targets, hypotheses = column(output, "T"), column(output, "H")
    assert len(hypotheses) == SENTENCES
    for i, (hypothesis,) in hypotheses.items():
        assert hypothesis.split()[:2] == targets[i][0].split()[:2]


def test_blockwise_causal_attention_reads_longer_texts(xpos_run: Path, language_data: Path) -> None:
    """xPos has no longest text, and the option is one of evaluation: the same checkpoint serves both."""
    longer = ["--tokens-per-sample", "136"]
    override = ["--model-overrides", "{'blockwise_causal_window': 32}"]
    losses = {
        name: evaluate(language_data, xpos_run, *flags)[1]
        for name, flags in {
            "short": [],
            "short blocks": override,
            "long": longer,
            "long blocks": longer + override,
        }.items()
    }
    assert losses["short"] == pytest.approx(losses["short blocks"], abs=2e-3), "two blocks see each other"
    assert losses["short"] != losses["long"] != losses["long blocks"]
    model, text = load(xpos_run, language_data), tokens_of_the_test_set(language_data)
    expected = nll(model, torch.tensor([2]), text) / len(text)
    assert losses["long"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("flags", [["--fp16"], ["--memory-efficient-bf16"], ["--checkpoint-activations"]])
def test_precisions_and_recomputation(flags: list[str], language_data: Path, tmp_path: Path) -> None:
    for arch in ("gpt_deepnorm", "bert_magneto"):
        train(language_data, tmp_path / arch, arch, *flags, "--fp16-init-scale", "4").check()


def test_resume_continues(language_data: Path, tmp_path: Path) -> None:
    """In batches of the whole text, since fairseq draws others after it has been interrupted."""
    for arch in ("gpt_xpos", "bert_deepnorm"):
        flags = ["--batch-size", "100", "--attention-dropout", "0"]
        train(language_data, tmp_path / arch / "straight", arch, *flags, "--max-update", "8").check()
        train(language_data, tmp_path / arch / "resumed", arch, *flags).check()
        train(language_data, tmp_path / arch / "resumed", arch, *flags, "--max-update", "8").check()
        assert_same_weights(tmp_path / arch / "straight", tmp_path / arch / "resumed", 1e-6)


def test_from_pretrained(causal_run: Path, language_data: Path) -> None:
    hub = gpt.LanguageModel.from_pretrained(str(causal_run.parent), "checkpoint_last.pt")
    assert hub.sample("w1 w2", beam=1, max_len_b=10).startswith("w1 w2")


@pytest.fixture(scope="session")
def classified(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences that contain w1 or do not, with the dictionary of the language data."""
    folder = tmp_path_factory.mktemp("classified")
    generator = random.Random(3)
    for split, size in (("train", 200), ("valid", 40)):
        sentences = [generator.sample([f"w{i}" for i in range(12)], k=5) for _ in range(size)]
        (folder / f"{split}.input").write_text("".join(" ".join(s) + "\n" for s in sentences))
        (folder / f"{split}.label").write_text("".join("yes\n" if "w1" in s else "no\n" for s in sentences))
    for part, name, extra in (("input", "input0", ["--srcdict", language_data / "dict.txt"]), ("label", "label", [])):
        prefixes = [f"--{split}pref={folder / split}.{part}" for split in ("train", "valid")]
        words = ["--only-source", *prefixes, "--destdir", folder / "bin" / name, *extra]
        run_fairseq("preprocess", words, plugin=False).check()
    return folder / "bin"


def finetune(data: Path, save_dir: Path, *flags: object) -> Finished:
    words = [data, "--task", "sentence_prediction", "--criterion", "sentence_prediction", "--num-classes", "2"]
    words += [*shrunk("bert_magneto"), "--max-source-positions", LENGTH, "--max-positions", LENGTH, "--init-token", "0"]
    words += [*FEW_UPDATES, "--cpu", "--dropout", "0", "--attention-dropout", "0", "--save-dir", save_dir]
    words += ["--no-epoch-checkpoints", "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"]
    return run_fairseq("train", [*words, *flags])


def test_sentence_prediction(masked_run: Path, classified: Path, tmp_path: Path) -> None:
    """Fine-tuning from a masked language model; the head learns, is saved, and is there when loaded again."""
    start = ["--restore-file", masked_run, "--reset-optimizer", "--reset-dataloader", "--reset-meters"]
    result = finetune(classified, tmp_path, *start, "--max-update", "200").check()
    assert "left as initialised: classification_heads.sentence_classification_head" in result.output
    learned = validated(result.output, "accuracy")
    assert learned[0] > 90
    head = {k: v for k, v in load_checkpoint(tmp_path / "checkpoint_last.pt")["model"].items() if "heads" in k}
    assert len(head) == 4
    words = [classified, "--path", tmp_path / "checkpoint_last.pt", "--cpu", "--batch-size", "8"]
    assert_printed_alike(validated(run_fairseq("validate", words).check().output, "accuracy"), learned)


def test_another_heads_classes_start_afresh(masked_run: Path, classified: Path, tmp_path: Path) -> None:
    finetune(classified, tmp_path / "two").check()
    again = ["--restore-file", tmp_path / "two" / "checkpoint_last.pt", "--reset-optimizer", "--reset-dataloader"]
    result = finetune(classified, tmp_path / "three", *again, "--reset-meters", "--num-classes", "3").check()
    assert "not loaded: classification_heads.sentence_classification_head.out_proj.weight" in result.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--context-window", "32"], r"--context-window \(32\) must be smaller than --tokens-per-sample \(32\)"),
        (["--context-window", "40"], r"--context-window \(40\) must be smaller than --tokens-per-sample \(32\)"),
        (["--tokens-per-sample", "64"], r"--tokens-per-sample \(64\) is longer than the model's 32 positions"),
        (
            ["--tokens-per-sample", "64", "--context-window", "40"],
            r"--tokens-per-sample \(64\) with --context-window \(40\) is longer than the model's 32 positions",
        ),
    ],
)
def test_evaluation_longer_than_the_model(
    flags: list[str], message: str, causal_run: Path, language_data: Path
) -> None:
    words = [language_data, "--path", causal_run, "--cpu", "--tokens-per-sample", LENGTH, *flags]
    result = run_fairseq("eval_lm", words)
    assert result.returncode != 0 and re.search(message, result.last_line), result.output[-2000:]


@pytest.mark.parametrize(
    ("words", "flags", "message"),
    [
        (40, [], r"sample #0, counted from 0, has 41 tokens .* the model 32 positions; shorten it"),
        (20, ["--max-len-b", "12"], r"a prompt of 20 tokens is longer than the 12 that .* raise --max-len-b"),
    ],
)
def test_prompts_that_are_too_long(
    words: int, flags: list[str], message: str, causal_run: Path, language_data: Path
) -> None:
    result = interact(language_data, causal_run, "w1 " * words + "\n", *flags)
    assert result.returncode != 0 and re.search(message, result.last_line), result.output[-2000:]


@pytest.mark.parametrize(
    ("command", "task"),
    [
        ("generate", ["--task", "masked_lm"]),
        ("generate", ["--task", "language_modeling"]),
        ("interactive", ["--task", "masked_lm"]),
        ("eval_lm", []),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1] if value else "",
)
def test_masked_models_do_not_generate(command: str, task: list[str], masked_run: Path, language_data: Path) -> None:
    result = run_fairseq(command, [language_data, *task, "--path", masked_run, "--cpu"], stdin="w1\n")
    assert result.returncode != 0
    assert "masked language model" in result.last_line and "torchscale-fairseq fill-masks" in result.last_line


def test_dictionary_of_another_size(causal_run: Path, language_data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("w1 w2\nw3\n")
    prefixes = [f"--{split}pref={tmp_path / 'train.en'}" for split in ("train", "valid", "test")]
    run_fairseq("preprocess", ["--only-source", *prefixes, "--destdir", tmp_path / "bin"], plugin=False).check()
    words = [tmp_path / "bin", "--path", causal_run, "--cpu", "--tokens-per-sample", LENGTH]
    result = run_fairseq("eval_lm", words)
    assert re.search(r"decoder was trained with a dictionary of \d+ entries, and this data has \d+", result.last_line)
    resumed = train(tmp_path / "bin", tmp_path / "run", "gpt_magneto", "--restore-file", str(causal_run))
    assert resumed.returncode != 0 and "another dictionary" in resumed.last_line
