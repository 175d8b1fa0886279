"""--task pretraining through fairseq's own commands."""

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("sentencepiece")

import sentencepiece
from fairseq.models import MODEL_REGISTRY

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.checkpoints import assert_same_weights
from tests.data.corpora import made_corpus
from tests.data.formats import FORMATS, made_format
from tests.fairseq_cli import FEW_UPDATES, Finished, run_beside_fairseq, run_fairseq, run_processes
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.checkpoints.reading import load_checkpoint

LENGTH = 32


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_corpus(tmp_path_factory.mktemp("shards") / "data")


def words_of(data: Path, save_dir: Path, arch: str, *flags: object) -> list[object]:
    masked = arch.startswith(("bert", "mlm"))
    words = [data, "--task", "pretraining", *shrunk(arch), *FEW_UPDATES, "--cpu", "--save-dir", save_dir]
    words += ["--tokens-per-sample", LENGTH, "--batch-size", "8", "--batch-read-ahead", "50"]
    words += ["--criterion", "masked_lm", "--max-source-positions", LENGTH] if masked else []
    return [*words, "--no-epoch-checkpoints", *flags]


def train(data: Path, save_dir: Path, arch: str, *flags: object) -> Finished:
    return run_fairseq("train", words_of(data, save_dir, arch, *flags))


@pytest.fixture(scope="session")
def masked_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 updates, which reach into the second epoch."""
    folder = tmp_path_factory.mktemp("masked")
    train(shards, folder, "bert_magneto", "--max-update", "40", "--disable-validation").check()
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def causal_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    train(shards, folder, "gpt_deepnorm").check()
    return folder / "checkpoint_last.pt"


def test_resuming_within_an_epoch_changes_nothing(masked_run: Path, shards: Path, tmp_path: Path) -> None:
    """Stopped in the first epoch, gone on with two workers, to the same weights, dropout included."""
    place = load_checkpoint(masked_run)["extra_state"]["train_iterator"]
    assert place["epoch"] == 2 and place["iterations_in_epoch"] > 0
    flags = ["--disable-validation", "--max-update"]
    train(shards, tmp_path, "bert_magneto", *flags, "9").check()
    train(shards, tmp_path, "bert_magneto", *flags, "40", "--num-workers", "2").check()
    assert_same_weights(masked_run.parent, tmp_path, 0)


def test_two_processes_go_on_where_one_stopped(shards: Path, tmp_path: Path) -> None:
    """Batches of 4 in two processes are those of 8 in one; the sum of the gradients differs by rounding, which Adam
    would magnify where gradients are zero."""
    flags = ["--disable-validation", "--dropout", "0", "--attention-dropout", "0", "--optimizer", "sgd", "--max-update"]
    train(shards, tmp_path / "one", "bert_magneto", *flags, "8").check()
    train(shards, tmp_path / "two", "bert_magneto", *flags, "4").check()
    words = words_of(shards, tmp_path / "two", "bert_magneto", *flags, "8", "--batch-size", "4")
    run_processes(2, "train", [*words, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]).check()
    places = [load_checkpoint(tmp_path / run / "checkpoint_last.pt")["extra_state"] for run in ("one", "two")]
    assert [place["train_iterator"]["samples_in_epoch"] for place in places] == [64, 64]
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)


def test_json_lines_give_the_weights_of_text(masked_run: Path, shards: Path, tmp_path: Path) -> None:
    """Compressed, without dict.txt, resumed within an epoch with a worker."""
    data = made_format(shards, tmp_path / "data", "json.gz")
    (data / "dict.txt").unlink()
    flags = ["--disable-validation", "--max-update"]
    train(data, tmp_path / "run", "bert_magneto", *flags, "9").check()
    train(data, tmp_path / "run", "bert_magneto", *flags, "40", "--num-workers", "1").check()
    assert_same_weights(masked_run.parent, tmp_path / "run", 0)


def test_another_dictionary_than_the_checkpoints(causal_run: Path, shards: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(shards, tmp_path / "data"))
    pieces = (data / "dict.txt").read_text().splitlines()
    (data / "dict.txt").write_text("\n".join([*pieces[1:], pieces[0]]) + "\n")
    words = [data, "--task", "pretraining", "--gen-subset", "valid", "--path", causal_run, "--cpu"]
    refused = run_fairseq("eval_lm", [*words, "--tokens-per-sample", LENGTH, "--batch-size", "8"])
    assert "was trained with a dictionary of 381 symbols, and that of" in refused.last_line
    assert "has other symbols or another order; name the tokenizer" in refused.last_line
    (data / "dict.txt").write_text("\n".join([*pieces, "more 1"]) + "\n")
    refused = train(data, causal_run.parent, "gpt_deepnorm", "--max-update", "9")
    assert (
        "was trained with a dictionary of 381 symbols" in refused.last_line and "has 382 symbols" in refused.last_line
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_two_processes_resume_each_format(name: str, shards: Path, tmp_path: Path) -> None:
    """From JSON lines and the like, with the index made by both, to the weights of text in one process."""
    flags = ["--disable-validation", "--dropout", "0", "--attention-dropout", "0", "--optimizer", "sgd", "--max-update"]
    data = made_format(shards, tmp_path / "data", name)
    train(shards, tmp_path / "one", "bert_magneto", *flags, "8").check()
    train(data, tmp_path / "two", "bert_magneto", *flags, "4").check()
    shutil.rmtree(data / "index")
    words = words_of(data, tmp_path / "two", "bert_magneto", *flags, "8", "--batch-size", "4", "--num-workers", "2")
    run_processes(2, "train", [*words, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)


def test_sample_continues_texts(causal_run: Path, shards: Path) -> None:
    hub = MODEL_REGISTRY["gpt_deepnorm"].from_pretrained(str(causal_run.parent), "checkpoint_last.pt", str(shards))
    assert hub.sample("bar dis", beam=1, max_len_b=12).startswith("bar dis")


@pytest.mark.parametrize("arch", ["retnet_base", "longnet"])
def test_causal_models_train(arch: str, shards: Path, tmp_path: Path) -> None:
    losses = re.findall(r" loss=([\d.]+)", train(shards, tmp_path, arch, "--max-update", "8").check().output)
    assert float(losses[-1]) < float(losses[0])


def test_experts_train(shards: Path, tmp_path: Path) -> None:
    flags = ["--moe-freq", "1", "--moe-expert-count", "4", "--criterion", "masked_lm_moe_cross_entropy"]
    assert "moe_gate_loss" in train(shards, tmp_path, "bert_deepnorm", *flags).check().output


def loss_of(output: str) -> float:
    return float(re.search(r"Loss \(base 2\): ([\d.]+)", output)[1])


@pytest.mark.family
def test_eval_lm(causal_run: Path, shards: Path, tmp_path: Path) -> None:
    """fairseq-eval-lm of binarised text, by the stock task, and of the shards agree, line by line."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(shards / "sentencepiece.bpe.model"))
    lines = [line for line in (shards / "shard/valid/v.txt").read_text().splitlines() if line]
    (tmp_path / "test").write_text("".join(" ".join(tokenizer.encode(line, out_type=str)) + "\n" for line in lines))
    prefixes = ["--testpref", tmp_path / "test", "--srcdict", shards / "dict.txt", "--destdir", tmp_path / "bin"]
    run_fairseq("preprocess", ["--only-source", *prefixes], plugin=False).check()
    same = ["--path", causal_run, "--cpu", "--tokens-per-sample", LENGTH, "--sample-break-mode"]
    stock = run_fairseq("eval_lm", [tmp_path / "bin", *same, "eos"]).check().output
    ours = [shards, "--task", "pretraining", "--gen-subset", "valid", *same, "eos"]
    assert loss_of(run_fairseq("eval_lm", ours).check().output) == pytest.approx(loss_of(stock), abs=2e-3)
    refused = run_fairseq("eval_lm", [*ours, "--context-window", "8"])
    assert "--context-window (8) is not there for --task pretraining" in refused.last_line


@pytest.mark.family
def test_validate(masked_run: Path, shards: Path) -> None:
    """The masks of a validation set are the same each time, whatever the size of batches."""
    losses = []
    for size in (8, 5):
        words = [shards, "--task", "pretraining", "--path", masked_run, "--cpu", "--batch-size", size]
        output = run_fairseq("validate", words).check().output
        losses.append(float(re.search(r"\| valid \| .*?loss ([\d.]+)", output)[1]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-3) and 0 < losses[0] < 12


def test_sentence_prediction(masked_run: Path, shards: Path, tmp_path: Path) -> None:
    """Stock fairseq's task takes the model as it is."""
    generator = random.Random(1)
    for split, size in (("train", 40), ("valid", 16)):
        lines = [generator.choices(["▁ba", "r", "s"], k=5) for _ in range(size)]
        (tmp_path / f"{split}.input").write_text("".join(" ".join(line) + "\n" for line in lines))
        (tmp_path / f"{split}.label").write_text("".join("yes\n" if "r" in line else "no\n" for line in lines))
    for part, name, extra in (("input", "input0", ["--srcdict", shards / "dict.txt"]), ("label", "label", [])):
        prefixes = [f"--{split}pref={tmp_path / split}.{part}" for split in ("train", "valid")]
        preprocess = ["--only-source", *prefixes, "--destdir", tmp_path / "bin" / name, *extra]
        run_fairseq("preprocess", preprocess, plugin=False).check()
    words: list[Any] = [tmp_path / "bin", "--task", "sentence_prediction", "--criterion", "sentence_prediction"]
    words += [*shrunk("bert_magneto"), "--num-classes", "2", "--init-token", "0", *FEW_UPDATES, "--cpu"]
    words += ["--max-source-positions", LENGTH, "--max-positions", LENGTH, "--save-dir", tmp_path / "run"]
    words += ["--restore-file", masked_run, "--reset-optimizer", "--reset-dataloader", "--reset-meters"]
    output = run_fairseq("train", [*words, "--no-save"]).check().output
    assert f"Loaded checkpoint {masked_run}" in output
    assert "left as initialised: classification_heads" in output and "accuracy" in output


def test_several_directories_take_turns(shards: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(shards, tmp_path / "other"))
    (other / "json/train.json").write_text('[{"source": ["shard/train/b.txt"], "source_lang": "en"}]')
    words = words_of(
        Path(f"{shards}:{other}"), tmp_path / "run", "bert_magneto", "--disable-validation", "--max-epoch", 3
    )
    output = run_fairseq("train", [*words, "--max-update", "1000"]).check().output
    lengths = re.findall(r"grouped total_num_itrs = (\d+)", output)
    assert len(lengths) == 3 and lengths[0] == lengths[2] and int(lengths[1]) < int(lengths[0])


@pytest.mark.parametrize(
    ("arch", "flags", "message"),
    [
        ("gpt_deepnorm", ["--objective", "masked"], r"--objective masked does not fit --arch gpt_deepnorm, a causal"),
        ("bert_magneto", ["--objective", "causal"], r"--objective causal does not fit --arch bert_magneto, a masked"),
        ("bert_magneto", ["--tokens-per-sample", 64], r"--tokens-per-sample \(64\) is longer than the model's 32"),
        ("bert_magneto", ["--tokens-per-sample", 3], r"--tokens-per-sample \(3\) must be at least 4"),
        ("bert_magneto", ["--valid-subset", "dev"], r"json/dev.json does not exist; .* \(there: train, valid\)"),
    ],
)
def test_options_that_do_not_fit(arch: str, flags: list[object], message: str, shards: Path, tmp_path: Path) -> None:
    result = train(shards, tmp_path, arch, *flags)
    assert result.returncode != 0 and re.search(message, result.last_line), result.output[-2000:]


def test_a_broken_line_ends_training_before_it_begins(shards: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(shards, tmp_path / "data"))
    with (data / "shard/train/a.txt").open("ab") as file:
        file.write(b"caf\xe9\n")
    result = train(data, tmp_path / "run", "bert_magneto")
    assert result.returncode != 0
    assert re.search(r"a.txt, line \d+: byte 4 \(0xe9\) is not UTF-8; mend it, or .*--skip-invalid", result.last_line)
    skipped = train(data, tmp_path / "run", "bert_magneto", "--skip-invalid").check()
    assert re.search(r"skipped 1 invalid lines, the first: .*a.txt, line \d+", skipped.output)


KILLED = """
    import os, random, signal, sys, time
    from fairseq_cli import train

    generator, words, last = random.Random(1), {words!r}, {last!r}

    def written():
        return os.stat(last).st_mtime_ns if os.path.exists(last) else 0

    for kill in range({kills}):
        before = written()
        child = os.fork()
        if child == 0:
            sys.argv = words
            train.cli_main()
            os._exit(0)
        while kill % 4 and written() == before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.15 if kill % 4 else 1))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it ended before it was killed"
        print("KILLED", kill, written(), flush=True)
    sys.argv = words
    train.cli_main()
"""


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_weights(shards: Path, tmp_path: Path) -> None:
    """By SIGKILL at random times, of each four once while it starts and thrice after it has written a checkpoint, which
    it does every third update; with reading in two processes."""
    flags = ["--disable-validation", "--max-update", "500"]
    train(shards, tmp_path / "whole", "bert_magneto", *flags).check()
    flags += ["--num-workers", "2", "--save-interval-updates", "3", "--keep-interval-updates", "2"]
    folder = tmp_path / "killed"
    words = ["fairseq-train", *map(str, words_of(shards, folder, "bert_magneto", *flags))]
    words += ["--user-dir", "torchscale_fairseq"]
    code = KILLED.format(words=words, kills=20, last=str(folder / "checkpoint_last.pt"))
    printed = run_beside_fairseq(code, plugin=True, timeout=1500).check().output
    assert len(set(re.findall(r"KILLED \d+ (\d+)", printed))) >= 15
    assert printed.count("Loaded checkpoint") >= 16
    assert_same_weights(tmp_path / "whole", folder, 0)
