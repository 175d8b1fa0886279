"""--task self_distillation through fairseq's commands, on images drawn here."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights, weights
from tests.core.distilled import PIXELS, SIZES
from tests.fairseq_cli import Finished, run_fairseq, run_processes
from tests.plugin.drawings import make_folders
from tests.plugin.image_models import IMAGES
from torchscale_fairseq import ViTConfig
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.criterions.self_distillation import SelfDistillationCriterion, SelfDistillationOptions
from torchscale_fairseq.hooks.options.self_distillation import check_self_distillation
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed
from torchscale_fairseq.models._self_distillation import SelfDistillationModel
from torchscale_fairseq.models.longvit import LongViTModel
from torchscale_fairseq.models.vit import ViTModel
from torchscale_fairseq.tasks._self_distillation_options import SelfDistillationConfig, check_options
from torchscale_fairseq.tasks.self_distillation import SelfDistillationTask

COMMON = ["--batch-size", "2", "--optimizer", "sgd", "--lr", "0.1", "--clip-norm", "1", "--cpu", "--num-workers", "0"]
COMMON += ["--log-format", "simple", "--log-interval", "1", "--no-epoch-checkpoints"]
COMMON += ["--required-batch-size-multiple", "1"]
SELF = [*IMAGES, "--task", "self_distillation", "--criterion", "self_distillation", "--local-img-size", "16"]
SELF += ["--local-crops", "1", "--flip", "--prototypes", "12", "--head-dim", "32", "--bottleneck-dim", "8"]
SELF += ["--freeze-last-layer-updates", "1", "--teacher-momentum", "0.9", "--teacher-momentum-updates", "9"]
SELF += ["--warmup-teacher-temp-updates", "2", "--teacher-temp", "0.07"]
VALUES: dict[str, Any] = {"data": "", "img_size": 32, "patch_size": 8, "local_img_size": 16, "max_update": 5}
FIGURES = re.compile(r"valid on 'valid' subset .*loss ([\d.]+) .*teacher_entropy ([\d.]+)")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("folders") / "data", train=3, valid=1)


def train(data: Path, folder: Path, *flags: str, updates: int = 4, processes: int = 1) -> Finished:
    words = [data, *SELF, *COMMON, "--max-update", str(updates), "--save-dir", folder, *flags]
    return (run_fairseq("train", words) if processes == 1 else run_processes(processes, "train", words)).check()


@pytest.fixture(scope="module")
def straight(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Four updates of two batches each, in which a second epoch begins."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, train(folders, folder, "--update-freq", "2")


def test_teacher_and_center_are_in_the_checkpoint(straight: tuple[Path, Finished]) -> None:
    state = weights(straight[0])
    name = "model.patch_embed.proj.weight"
    assert not torch.equal(state[f"teacher.network.{name}"], state[f"student.{name}"])
    assert state["center.value"].any()
    assert FIGURES.search(straight[1].output)


def test_resumes_exactly(folders: Path, straight: tuple[Path, Finished], tmp_path: Path) -> None:
    """Interrupted within the second epoch; activations are recomputed in the second part."""
    train(folders, tmp_path, "--update-freq", "2", updates=3)
    done = train(folders, tmp_path, "--update-freq", "2", "--checkpoint-activations")
    assert "@ 3 updates" in done.output
    assert_same_weights(straight[0], tmp_path, 0.0)


@pytest.mark.slow
def test_two_processes_train_what_accumulated_batches_do(
    folders: Path, straight: tuple[Path, Finished], tmp_path: Path
) -> None:
    done = train(folders, tmp_path, processes=2)
    assert_same_weights(straight[0], tmp_path, 1e-6)
    found, expected = (FIGURES.search(output)[1] for output in (done.output, straight[1].output))
    assert float(found) == pytest.approx(float(expected), abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_low_precision(precision: str, folders: Path, tmp_path: Path) -> None:
    """The teacher and the center are saved in float32."""
    train(folders, tmp_path, precision, processes=2)
    state = weights(tmp_path)
    averages = [value for name, value in state.items() if name.startswith(("teacher.", "center."))]
    assert any((value.bfloat16().float() != value).any() for value in averages)
    assert all(value.isfinite().all() for value in averages)


@pytest.mark.parametrize("branch", ["teacher", pytest.param("student", marks=pytest.mark.slow)])
def test_fine_tunes_from_teacher_or_student(
    branch: str, folders: Path, straight: tuple[Path, Finished], tmp_path: Path
) -> None:
    before = straight[0] / "checkpoint_last.pt"
    words = [folders, *IMAGES, *COMMON, "--max-update", "1", "--lr", "1e-9", "--save-dir", tmp_path / "run"]
    chosen = [] if branch == "teacher" else ["--pretrained-branch", branch]
    output = run_fairseq("train", [*words, "--pretrained", before, *chosen]).check().output
    assert f"began from {before}" in output
    old, new = weights(straight[0]), weights(tmp_path / "run")
    prefix = {"teacher": "teacher.network.", "student": "student."}[branch]
    for name in ("model.patch_embed.proj.weight", "model.pos_embed", "fc_norm.weight"):
        torch.testing.assert_close(new[name], old[prefix + name])


def test_embeds_files_by_the_teacher(folders: Path, straight: tuple[Path, Finished]) -> None:
    hub = LongViTModel.from_pretrained(str(straight[0]), "checkpoint_last.pt")
    image = next((folders / "valid" / "red").iterdir())
    features = hub.extract_features(image)
    assert features.shape == (1, 16, 16)
    with torch.no_grad():
        pooled = hub.model.teacher.network.fc_norm(features.mean(1))
    torch.testing.assert_close(hub.embed_images([image]), pooled)


def configuration(**options: Any) -> Any:
    values = {"ddp_backend": "pytorch_ddp", "amp": False, "use_bmuf": False, "seq_parallel": False, "lora_rank": 0}
    section = SimpleNamespace(**values, _name="self_distillation")
    section.__dict__.update(options)
    return SimpleNamespace(
        task=section, model=section, common=section, optimization=section, distributed_training=section
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ddp_backend": "fully_sharded"}, "--ddp-backend fully_sharded cannot .* give --ddp-backend pytorch_ddp"),
        ({"amp": True}, "--amp cannot be combined with --task self_distillation.*drop --amp"),
        ({"use_bmuf": True}, "--use-bmuf cannot"),
        ({"seq_parallel": True}, "--seq-parallel cannot"),
        ({"lora_rank": 4}, "--lora-rank 4 cannot"),
        ({"moe_freq": 2}, "--moe-freq 2 cannot"),
        ({"encoder_moe_freq": 2}, "--encoder-moe-freq 2 cannot"),
    ],
)
def test_what_cannot_be_combined(options: dict[str, Any], message: str) -> None:
    check_self_distillation(configuration())
    check_self_distillation(configuration(**options, _name="image_classification"))
    with pytest.raises(OptionError, match=message), spelt_as_typed():
        check_self_distillation(configuration(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_img_size": 20}, r"--local-img-size \(20\) must be a multiple of --patch-size \(8\); use 16"),
        ({"local_crops": -1}, r"--local-crops \(-1\) must be at least 0"),
        ({"min_local_crop": 0.5}, r"--min-local-crop \(0.5\) must be above 0 and at most --min-crop \(0.4\)"),
        ({"teacher_momentum": 1.5}, r"--teacher-momentum \(1.5\) must lie between 0 and 1"),
        ({"max_update": 0}, "give --max-update or --teacher-momentum-updates"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    check_options(SelfDistillationConfig(**VALUES))
    with pytest.raises(InputError, match=message):
        check_options(SelfDistillationConfig(**{**VALUES, **options}))


def tiny_model(**options: Any) -> SelfDistillationModel:
    sizes = {"head_dim": 12, "bottleneck_dim": 6, "prototypes": 10, "freeze_last_layer_updates": 2, **options}
    return SelfDistillationModel(ViTModel, ViTConfig(**SIZES, **PIXELS), SimpleNamespace(**sizes))


def test_the_last_layer_is_frozen_in_the_first_updates() -> None:
    model = tiny_model(freeze_last_layer_updates=2)
    frozen = []
    for update in range(4):
        model.set_num_updates(update)
        frozen.append(model.student.head.frozen)
    assert frozen == [True, True, False, False]


@pytest.mark.parametrize("is_stale", [False, True])
def test_stale_batches_leave_the_center(is_stale: bool) -> None:
    """A process that has run out of batches computes one again, whose gradients do not count."""
    task = SelfDistillationTask(SelfDistillationConfig(**VALUES, seed=1))
    criterion, model = SelfDistillationCriterion(SelfDistillationOptions(), task), tiny_model()
    crops = torch.randint(256, (2, 3, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    sample = {"net_input": {"global_crops": crops}, "nsentences": 3, "ntokens": 96}
    optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
    task.train_step(sample, model, criterion, optimizer, 0, ignore_grad=is_stale)
    model.follow_student(1.0, 0.0)
    assert (model.center.value.abs().max() == 0) == is_stale


def test_a_checkpoint_of_another_task_is_refused() -> None:
    task = SelfDistillationTask(SelfDistillationConfig(**VALUES, seed=1))
    state = {"cfg": {"task": {"_name": "image_classification", "img_size": 32}}}
    with pytest.raises(InputError, match=r"the checkpoint is of --task image_classification.*--pretrained"):
        task.adapt_checkpoint(state, fine_tuning=False, keep_optimizer=True)
