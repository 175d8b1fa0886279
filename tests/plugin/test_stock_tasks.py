"""Our architectures with fairseq's tasks and criterions: each pair trains, or one sentence says which do."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import models, options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass import initialize
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf

from tests.fairseq_cli import FEW_UPDATES, REPOSITORY, TINY_LANGUAGE_MODEL, TINY_TRANSFORMER, run_fairseq
from tests.plugin.shrunk import shrunk
from tests.plugin.stock_tasks import CRITERIONS, LENGTH, built, stock_data, words_of
from torchscale_fairseq import plugin
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.options.fitting import refuse_unfit

plugin.register()

OURS = sorted(name for name, model in MODEL_REGISTRY.items() if hasattr(model, "fits"))
FAMILIES = ("mt_deepnorm", "gpt_deepnorm", "bert_magneto")
"""One for each kind of model of text."""
OWN_TESTS = ("pretraining", "instruction_tuning")
"""Tasks with tests of their own."""
FITTING = [(arch, task) for arch in FAMILIES for task in MODEL_REGISTRY[arch].fits if task not in OWN_TESTS]
TRAINED_ELSEWHERE = ("translation", "language_modeling", "masked_lm", "sentence_prediction")
"""Tasks that tests of the commands train with."""
CRITERIONS_OF = [
    (arch, task, criterion)
    for arch, task in (
        ("mt_deepnorm", "translation"),
        ("gpt_deepnorm", "language_modeling"),
        ("bert_magneto", "masked_lm"),
    )
    for criterion in MODEL_REGISTRY[arch].fits[task][1:]
]
PAGE = (REPOSITORY / "docs" / "stock_tasks.md").read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_data(tmp_path_factory.mktemp("stock") / "data")


def train(words: list[str], updates: int = 2) -> list[float]:
    """The losses of so many updates on the first batch, in this process."""
    cfg, task, model = built(words)
    model.train()
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    batches = task.get_batch_iterator(
        task.dataset("train"), max_sentences=8, max_positions=(512, 512) if _is_pair(task) else 512
    )
    sample = next(batches.next_epoch_itr(shuffle=False))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(updates):
        loss, size, _ = task.train_step(copy.deepcopy(sample), model, criterion, _Backward(), 0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss if isinstance(loss, float) else loss.detach()) / float(size))
    return losses


class _Backward:
    """What a task's train_step needs of an optimizer."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def _is_pair(task: Any) -> bool:
    return isinstance(task.max_positions(), (tuple, list))


def command(arch: str, task: str, criterion: str, data: Path) -> list[str]:
    flags = [*shrunk(arch), "--criterion", criterion, *CRITERIONS.get(criterion, "").split()]
    return [*words_of(task, data), *flags, "--batch-size", "8", "--cpu"]


def test_every_architecture_with_every_task() -> None:
    """All pairs of registered names: a task that does not fit is refused by one sentence with those that do."""
    refused = 0
    for arch in OURS:
        fits = MODEL_REGISTRY[arch].fits
        assert set(fits) <= set(TASK_REGISTRY) and {name for names in fits.values() for name in names} <= set(
            CRITERION_REGISTRY
        )
        for task in TASK_REGISTRY:
            if task in fits:
                refuse_unfit(arch, task)
                continue
            with pytest.raises(InputError) as error:
                refuse_unfit(arch, task)
            assert f"--arch {arch} does not fit --task {task}; give --task" in str(error.value)
            assert any(name in str(error.value) for name in fits)
            refused += 1
    assert refused > 0


def test_every_criterion_with_every_task_of_an_architecture() -> None:
    for arch in OURS:
        for task, criterions in MODEL_REGISTRY[arch].fits.items():
            for criterion in CRITERION_REGISTRY:
                if criterion in criterions:
                    refuse_unfit(arch, task, criterion)
                else:
                    with pytest.raises(InputError, match=f"--arch {arch} does not fit --criterion {criterion} with"):
                        refuse_unfit(arch, task, criterion)


@pytest.mark.parametrize(
    ("arch", "task"),
    [pair for pair in FITTING if pair[1] not in TRAINED_ELSEWHERE and not pair[1].startswith("dummy_")],
)
def test_task_trains(arch: str, task: str, data: Path) -> None:
    losses = train(command(arch, task, MODEL_REGISTRY[arch].fits[task][0], data))
    assert all(0 < loss < 20 for loss in losses)


@pytest.mark.parametrize("flags", [["--decoder-learned-pos"], ["--max-target-positions", str(LENGTH)]])
def test_add_bos_token_needs_no_longer_model(flags: list[str], data: Path) -> None:
    """<s> comes on top of --tokens-per-sample; texts of that length still fit, and longer ones are left out."""
    words = [*command("gpt_deepnorm", "language_modeling", "cross_entropy", data), "--add-bos-token", *flags]
    assert all(0 < loss < 20 for loss in train(words))
    model = built(words)[2]
    assert model.max_positions() == LENGTH and model.max_decoder_positions() == LENGTH + 1


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "task", "criterion"), CRITERIONS_OF)
def test_criterion_trains(arch: str, task: str, criterion: str, data: Path) -> None:
    losses = train(command(arch, task, criterion, data))
    assert all(0 < loss < 20 for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "task"), FITTING)
def test_task_trains_by_the_command(arch: str, task: str, data: Path, tmp_path: Path) -> None:
    words = command(arch, task, MODEL_REGISTRY[arch].fits[task][0], data)
    run_fairseq("train", [*words, *FEW_UPDATES, "--save-dir", tmp_path]).check()
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_the_page_lists_what_fits() -> None:
    """docs/stock_tasks.md: a row per task with the architectures and criterions that are accepted, and a reason for all
    the other tasks and criterions of fairseq."""
    kinds = {"mt_...": "mt_deepnorm", "gpt_...": "gpt_deepnorm", "bert_...": "bert_magneto"}
    kinds["s2t_..."] = "s2t_magneto"
    kinds |= {
        "beit3": "beit3",
        "longvit_...": "longvit_small",
        "vit_...": "vit_tiny",
        "beit_...": "beit_tiny",
        "slide_encoder_...": "slide_encoder_tiny",
    }
    cells = [[names(cell) or [cell.strip()] for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()]
    rows = [row for row in cells if len(row) == 4 and row[1][0] in kinds]
    groups = {row[0][0]: [n for n in row[1] if n in CRITERION_REGISTRY] for row in cells if len(row) == 2}
    for arch in kinds.values():
        written = {t: row[2] for row in rows if kinds[row[1][0]] == arch for t in row[0]}
        written = {task: sorted(groups.get(words[0], words)) for task, words in written.items()}
        assert written == {task: sorted(names) for task, names in MODEL_REGISTRY[arch].fits.items()}
    assert set(TASK_REGISTRY) | set(CRITERION_REGISTRY) <= set(names(PAGE))


def names(text: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--arch gpt_deepnorm --tokens-per-sample 8",
            r"does not fit --task translation \(the default\); give --task lang",
        ),
        (
            "--arch mt_deepnorm --task masked_lm",
            r"--arch mt_deepnorm does not fit --task masked_lm; give --task transl",
        ),
        (
            "--arch bert_magneto --task masked_lm",
            r"not fit --criterion cross_entropy \(the default\) with --task masked",
        ),
    ],
)
def test_command_lines_are_refused_before_anything_is_read(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        options.parse_args_and_arch(options.get_training_parser(), ["nowhere", *words.split()])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["translation_from_pretrained_bart", "multilingual_language_modeling"])
def test_tasks_that_stock_breaks_train_stocks_models_too(task: str, data: Path, tmp_path: Path) -> None:
    tiny = TINY_LANGUAGE_MODEL[2:] if "language" in task else TINY_TRANSFORMER
    words = [*words_of(task, data), *tiny, *FEW_UPDATES, "--save-dir", tmp_path]
    assert run_fairseq("train", words, plugin=False).returncode != 0
    run_fairseq("train", words).check()


def test_r_drop_leaves_the_batch_to_bleu(data: Path) -> None:
    """Which is translated after the loss has been computed."""
    words = command("mt_deepnorm", "translation", "label_smoothed_cross_entropy_with_rdrop", data)
    cfg, task, model = built([*words, "--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 5}'])
    task.load_dataset("valid")
    sample = task.dataset("valid").collater([task.dataset("valid")[index] for index in range(4)])
    _, _, logged = task.valid_step(sample, model, task.build_criterion(cfg.criterion))
    assert logged["_bleu_sys_len"] > 0


def test_missing_inputs_of_ranking_are_named(data: Path) -> None:
    words = [*words_of("sentence_ranking", data), "--num-classes", "3", *shrunk("bert_magneto")]
    _, task, _ = built([*words, "--criterion", "sentence_ranking"])
    with pytest.raises(InputError, match=r"input3 has no split 'train': --num-classes \(3\) needs .* input0 to input3"):
        task.load_dataset("train")


def test_one_language_is_completed_by_the_pair_of_the_data(data: Path) -> None:
    words = [str(data / "pairs"), *shrunk("mt_deepnorm"), "--task", "translation", "--optimizer", "adam"]
    _, task, _ = built([*words, "--source-lang", "de"])
    assert (task.cfg.source_lang, task.cfg.target_lang) == ("de", "en")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"model": "gpt_deepnorm", "task": "masked_lm"}, "--arch gpt_deepnorm does not fit --task masked_lm"),
        (
            {"model": "gpt_deepnorm_small", "task": "pretraining", "criterion": "masked_lm"},
            "--arch gpt_deepnorm_small does not fit --criterion masked_lm with --task pretraining; give",
        ),
    ],
)
def test_configurations_of_hydra_are_refused(nodes: dict[str, str], message: str) -> None:
    """As with the model of one file and the criterion of another."""
    with pytest.raises(InputError, match=message):
        initialize.add_defaults(OmegaConf.create({kind: {"_name": name} for kind, name in nodes.items()}))


def test_checkpoints_are_refused() -> None:
    """By the task of the command, such as fairseq-generate's without --task."""
    task = SimpleNamespace(cfg=SimpleNamespace(_name="translation"))
    with pytest.raises(InputError, match="--arch gpt_deepnorm does not fit --task translation"):
        models.build_model(SimpleNamespace(_name="gpt_deepnorm"), task, from_checkpoint=True)
