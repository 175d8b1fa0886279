"""BitNet through fairseq's commands: trained on its schedule, packed, generated from."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

import torchscale_fairseq.models  # noqa: F401 - registers what shrunk looks up
from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq
from tests.plugin.shrunk import shrunk
from tests.tools.in_process import run_tool

LENGTH = 32


def train(data: Path, save_dir: Path, *flags: str, updates: int = 4) -> Finished:
    words = [data, "--task", "language_modeling", *shrunk("bitnet"), *FEW_UPDATES, "--cpu", "--save-dir", save_dir]
    words += ["--tokens-per-sample", LENGTH, "--required-batch-size-multiple", "1", "--no-epoch-checkpoints"]
    return run_fairseq("train", [*words, "--max-update", str(updates), *flags])


@pytest.fixture(scope="module")
def trained(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bitnet")
    schedule = ["--lr-scheduler", "two_phase", "--warmup-updates", "2", "--lr", "0.01", "--weight-decay", "0.1"]
    done = train(language_data, folder, *schedule, updates=10).check()
    (folder / "log.txt").write_text(done.output)
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def packed(trained: Path) -> Path:
    path = trained.with_name("packed.pt")
    done = run_tool("convert", "pack-bitnet", trained, path).check()
    path.with_suffix(".txt").write_text(done.stdout)
    return path


def loss(data: Path, checkpoint: Path) -> float:
    words = [data, "--path", checkpoint, "--cpu", "--tokens-per-sample", LENGTH, "--required-batch-size-multiple", "1"]
    return float(re.search(r"Loss \(base 2\): ([\d.]+)", run_fairseq("eval_lm", words).check().output)[1])


def test_schedule(trained: Path) -> None:
    """Warm-up over two updates, a line to zero at ten, and from the fifth on one of two thirds."""
    logged = re.findall(r"num_updates (\d+) \| lr ([\d.e-]+) ", (trained.parent / "log.txt").read_text())
    assert {int(update) for update, _ in logged} >= {2, 4, 6, 10}
    for update, rate in logged:
        n = int(update)
        assert float(rate) == pytest.approx(0.01 * (1 - n / 10) * (1 if n < 5 else 2 / 3), rel=1e-3, abs=1e-8)


def test_weight_decay_ends_with_the_first_phase(trained: Path) -> None:
    state = torch.load(trained, weights_only=False)
    assert {group["weight_decay"] for group in state["last_optimizer_state"]["param_groups"]} == {0.0}


@pytest.mark.family
def test_packed_model_gives_the_same_loss(language_data: Path, trained: Path, packed: Path) -> None:
    assert loss(language_data, packed) == pytest.approx(loss(language_data, trained), abs=1e-3)


def test_packed_model_generates_the_same(language_data: Path, trained: Path, packed: Path) -> None:
    words = [language_data, "--task", "language_modeling", "--cpu", "--beam", "2", "--max-len-b", "12", "--path"]
    answers = [run_fairseq("interactive", [*words, path], stdin="w1 w2\n").check().stdout for path in (trained, packed)]
    hypotheses = [re.findall(r"^H-0\t(\S+)\t(.*)$", answer, re.MULTILINE) for answer in answers]
    assert hypotheses[0] and [h[1] for h in hypotheses[0]] == [h[1] for h in hypotheses[1]]


def test_packed_file_is_as_small_as_its_bits_say(trained: Path, packed: Path) -> None:
    count, bits = re.search(
        r"([\d,]+) weights in .* \(([\d.]+) bits each\)", packed.with_suffix(".txt").read_text()
    ).groups()
    weights = int(count.replace(",", ""))
    assert 1.6 <= float(bits) < 4  # rows of tiny models end in bytes that are not full, and scales count
    full, small = (
        sum(x.nbytes for x in torch.load(p, weights_only=False)["model"].values()) for p in (trained, packed)
    )
    assert full - small == pytest.approx(weights * (32 - float(bits)) / 8, rel=0.01)


def test_packed_checkpoint_is_not_trained(language_data: Path, packed: Path, tmp_path: Path) -> None:
    done = train(language_data, tmp_path, "--restore-file", str(packed), "--bitnet-packed", "--reset-optimizer")
    assert done.returncode and "bitnet_packed weights cannot be trained" in done.output


def test_packing_what_is_no_bitnet_is_refused(language_checkpoint: Path, packed: Path, tmp_path: Path) -> None:
    for path, message in ((language_checkpoint, "without --bitnet"), (packed, "is packed already")):
        done = run_tool("convert", "pack-bitnet", path, tmp_path / "out.pt")
        assert done.returncode == 1 and message in done.last_line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--warmup-updates", "4"], r"--warmup-updates \(4\) must be below --total-num-update \(4\)"),
        (
            ["--warmup-updates", "1", "--second-phase-start", "50"],
            r"--second-phase-start \(50.0\) must be between 0 and 1",
        ),
    ],
)
def test_wrong_schedules_are_refused(language_data: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    done = train(language_data, tmp_path, "--lr-scheduler", "two_phase", *flags)
    assert done.returncode and re.search(message, done.last_line)
