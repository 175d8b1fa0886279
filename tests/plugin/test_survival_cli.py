"""--task image_classification --labels FILE --criterion survival through fairseq's commands, on images drawn here."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("fairseq")

from tests.fairseq_cli import Finished, run_fairseq, run_processes
from tests.helpers import assert_close
from tests.plugin.image_models import classify
from tests.printed import assert_printed_alike, validated
from tests.tools.in_process import run_tool
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.core.ops.survival import concordance_index, survival_loss
from torchscale_fairseq.criterions.image_classification import ImageClassificationCriterion, ImageClassificationOptions
from torchscale_fairseq.criterions.survival import SurvivalCriterion, SurvivalOptions
from torchscale_fairseq.data.survival import bins_of, read_survival, time_edges
from torchscale_fairseq.tasks.image_classification import ImageClassificationTask, ImageConfig

TASK = ["--task", "image_classification", "--labels", "survival.csv"]
IMAGES = [*TASK, "--criterion", "survival", "--arch", "longvit_tiny", "--img-size", "32", "--patch-size", "8"]
TINY = ["--encoder-layers", "1", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"]
TINY += ["--encoder-attention-heads", "2"]
COMMON = ["--optimizer", "adam", "--lr", "1e-3", "--cpu", "--num-workers", "0", "--log-format", "simple"]
COMMON += ["--no-epoch-checkpoints", "--required-batch-size-multiple", "1"]
BEST = ["--best-checkpoint-metric", "c_index", "--maximize-best-checkpoint-metric"]


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("discs") / "data", train=24, valid=11)


def draw(folder: Path, train: int, valid: int) -> Path:
    run_tool("data", "draw-survival", folder, "--train", train, "--valid", valid).check()
    return folder


def train(data: Path, folder: Path, *flags: str, updates: int = 3, processes: int = 1) -> Finished:
    words = [data, *IMAGES, *COMMON, *BEST, "--max-update", str(updates), "--save-dir", folder, *flags]
    return run_fairseq("train", words, timeout=600) if processes == 1 else run_processes(processes, "train", words)


def validate(data: Path, checkpoint: Path) -> Finished:
    words = ["--task", "image_classification", "--path", checkpoint, "--valid-subset", "valid", "--batch-size", "4"]
    return run_fairseq("validate", [data, *words, "--cpu"])


@pytest.fixture(scope="module")
def trained(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """By two processes, of which one validates a batch more than the other, and one that is not full."""
    folder = tmp_path_factory.mktemp("trained")
    logged = ["--tensorboard-logdir", str(folder / "tensorboard")]
    return folder, train(discs, folder, *TINY, *logged, "--batch-size", "4", "--class-balanced", processes=2).check()


def test_figures_are_logged(trained: tuple[Path, Finished]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, done = trained
    assert re.search(r"24 images, \d+ events; bins of time begin at 0, [\d.]+, [\d.]+, [\d.]+", done.output)
    events = EventAccumulator(str(folder / "tensorboard" / "valid"))
    events.Reload()
    best = load_checkpoint(folder / "checkpoint_best.pt")["extra_state"]["best"]
    assert_printed_alike([events.Scalars("c_index")[-1].value, best], 2 * validated(done.output, "c_index"))


def test_one_process_measures_what_two_did(discs: Path, trained: tuple[Path, Finished], tmp_path: Path) -> None:
    """And knows the bins of time without the training's table."""
    folder, done = trained
    shutil.copytree(discs / "valid", tmp_path / "valid")
    alone = validate(tmp_path, folder / "checkpoint_last.pt").check()
    assert_printed_alike(validated(alone.output, "loss", "c_index"), validated(done.output, "loss", "c_index"))


@pytest.mark.family
def test_risks_of_files(discs: Path, trained: tuple[Path, Finished]) -> None:
    """They rank images as validation found; the risk is minus the sum of the curve, whose last value is not shown."""
    checkpoint = trained[0] / "checkpoint_last.pt"
    table = read_survival(discs / "valid" / "survival.csv")
    header, *lines = classify(checkpoint, *table.images).check().stdout.splitlines()
    edges = load_checkpoint(checkpoint)["task_state"]["time edges"]
    assert header.split("\t") == ["file", "risk", *(f"S({edge:g})" for edge in edges)]
    assert [Path(line.split("\t")[0]) for line in lines] == table.images
    found = torch.tensor([[float(cell) for cell in line.split("\t")[1:]] for line in lines], dtype=torch.float64)
    last = -found.sum(1)
    assert ((last > 0) & (last < found[:, -1])).all()
    c_index = concordance_index(found[:, 0], table.times, table.events)
    assert_printed_alike([c_index], validated(trained[1].output, "c_index"))
    first, *of_folder = classify(checkpoint, discs / "valid").check().stdout.splitlines()
    assert first == header
    for line, expected in zip(of_folder, sorted(lines), strict=True):
        (file, *figures), (name, *others) = line.split("\t"), expected.split("\t")
        assert file == name
        assert_printed_alike([float(x) for x in figures], [float(x) for x in others], file)


def test_a_run_goes_on_with_its_bins_of_time(discs: Path, trained: tuple[Path, Finished], tmp_path: Path) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    shutil.copytree(trained[0], tmp_path / "run")
    assert "@ 3 updates" in train(data, tmp_path / "run", *TINY, "--batch-size", "8", updates=4).check().output
    edges = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["task_state"]["time edges"]
    assert len(edges) == 3 and edges == sorted(edges)
    table = data / "train" / "survival.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-6]) + "\n")
    refused = train(data, tmp_path / "run", *TINY, "--batch-size", "8", updates=5)
    wanted = rf"checkpoint's time edges are {edges[0]}, .*, and the time edges of .*train [\d.]+, .* --finetune"
    assert refused.returncode and re.search(wanted, refused.last_line)


def test_mistakes_end_in_a_line_that_names_them(discs: Path, tmp_path: Path) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    (data / "train" / "5.png").unlink()
    done = train(data, tmp_path / "run", *TINY, "--batch-size", "8")
    assert done.returncode and re.search(r"train/survival\.csv, line 7 names .*5\.png, which does not", done.last_line)


def test_options_that_do_not_go_together() -> None:
    with_times = SimpleNamespace(cfg=ImageConfig(labels="survival.csv"), predicts="times")
    with_classes = SimpleNamespace(cfg=ImageConfig(), predicts="classes")
    with pytest.raises(ValueError, match=r"--criterion survival needs --task image_classification with --labels"):
        SurvivalCriterion(SurvivalOptions(), with_classes)
    with pytest.raises(ValueError, match=r"--labels \(survival\.csv\) is for --criterion survival"):
        ImageClassificationCriterion(ImageClassificationOptions(), with_times)
    with pytest.raises(ValueError, match=r"--alpha-surv \(1\.5\) must be at least 0 and below 1"):
        SurvivalCriterion(SurvivalOptions(alpha_surv=1.5), with_times)
    with pytest.raises(ValueError, match=r"--time-bins \(1\) must be at least 2"):
        ImageClassificationTask.setup_task(ImageConfig(labels="survival.csv", time_bins=1))


def test_validation_has_the_trainings_bins(discs: Path) -> None:
    """Which a checkpoint tells, or the training's table; with groups that are bins, seen and censored apart."""
    cfg = ImageConfig(
        data=str(discs), labels="survival.csv", img_size=32, patch_size=8, time_bins=3, class_balanced=True
    )
    cfg.train_subset, cfg.seed = "train", 1
    learns, told = (ImageClassificationTask.setup_task(cfg, from_checkpoint=told) for told in (False, True))
    told.load_state_dict(learns.state_dict())
    edges = time_edges(read_survival(discs / "train" / "survival.csv"), 3)
    table = read_survival(discs / "valid" / "survival.csv")
    bins = bins_of(table.times, edges)
    for task in (learns, told):
        task.load_dataset("valid")
        assert task.num_classes == 3 and task.datasets["valid"].groups is None
        assert_close(
            task.datasets["valid"].targets, torch.stack([table.times, table.events, bins], 1).double(), "float64"
        )
    learns.load_dataset("train")
    trained = read_survival(discs / "train" / "survival.csv")
    assert learns.datasets["train"].groups == (2 * bins_of(trained.times, edges) + trained.events).tolist()


def test_concordance_of_scores() -> None:
    """The higher the hazards, the sooner the event."""
    targets = torch.tensor([[1.0, 1, 0], [2.0, 1, 1], [3.0, 0, 1]])
    scores = torch.tensor([[2.0, 2.0], [0.0, 1.0], [0.0, -1.0]])
    assert SurvivalCriterion.measure(scores, targets) == {"c_index": 1.0}
    assert SurvivalCriterion.measure(-scores, targets) == {"c_index": 0.0}


def test_censored_images_count_less_by_alpha() -> None:
    scores, bins, events = torch.randn(6, 4).double(), torch.randint(4, (6,)), torch.tensor([1, 0, 1, 1, 0, 0])
    targets = torch.stack([torch.arange(6), events, bins], 1).double()
    criterion = SurvivalCriterion(SurvivalOptions(alpha_surv=0.25), SimpleNamespace(predicts="times"))
    weights = torch.tensor([1.0, 0.75, 1.0, 1.0, 0.75, 0.75])
    assert_close(criterion.losses(scores, targets), weights * survival_loss(scores, bins, events.bool()), "float64")


@pytest.mark.slow
def test_orders_held_out_images(tmp_path: Path) -> None:
    """Discs whose size sets the hazard: 0.9 would be perfect."""
    data = draw(tmp_path / "data", train=800, valid=200)
    flags = ["--batch-size", "32", "--lr", "1e-3", "--validate-interval", "100", "--log-interval", "50"]
    output = train(data, tmp_path / "run", *flags, updates=200).check().output
    assert validated(output, "c_index")[0] > 0.8
