"""Which batches are recorded as CUDA graphs and which run as usual."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

pytest.importorskip("fairseq")

from tests.emulated_graphs import emulate
from tests.fairseq_cli import run_python
from tests.plugin.shrunk import EXPERTS
from tests.plugin.trainers import MASKED, make_trainer
from torchscale_fairseq import LongViTClassifier, LongViTConfig
from torchscale_fairseq.core.config import ViTConfig
from torchscale_fairseq.criterions.image_classification import ImageClassificationCriterion, ImageClassificationOptions
from torchscale_fairseq.hooks.training.masked_tokens import COUNT, Count
from torchscale_fairseq.hooks.training.padding import is_free_of_padding, note_no_padding
from torchscale_fairseq.hooks.training.step_graphs import MOST, RECENT, SEEN, StepGraphs, can_record
from torchscale_fairseq.models.vit import ViTModel

GOING = SEEN + 3
"""Batches of a shape: those before it is recorded, the one that is, and two that are replayed."""


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    replays = 0
    pools: ClassVar[list["Graph | None"]] = []
    """Of memory: of which graph each capture takes it, or None."""

    def replay(self) -> None:
        Graph.replays += 1

    def pool(self) -> "Graph":
        return self


def capture(graph: Graph, pool: Graph | None = None, **_: Any) -> AbstractContextManager[None]:
    """In the place of torch.cuda.graph."""
    Graph.pools.append(pool)
    return nullcontext()


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    Graph.replays, Graph.pools = 0, []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)


class Run:
    """Updates of a model with one parameter, by batches of which nothing but the shape counts."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.optimizer = SimpleNamespace(scaler=None, _needs_sync=False)
        self.as_usual = 0
        self.graphs = StepGraphs(self._train_step)

    def _train_step(self, sample: Any, *_: Any) -> Any:
        self.as_usual += 1
        return sample["target"].sum(), sample.get(COUNT, sample["ntokens"]), {"loss": sample["target"].sum()}

    def step(self, rows: int = 2, *, padded: bool = False, ignore_grad: bool = False, masked: int | None = None) -> Any:
        tokens = torch.zeros(rows, 3)
        if not padded:
            note_no_padding(tokens)
        sample = {"net_input": {"src_tokens": tokens}, "target": torch.ones(rows, 3), "ntokens": 3 * rows}
        sample |= {} if masked is None else {COUNT: Count(masked)}
        return self.graphs(sample, self.model, None, self.optimizer, 0, ignore_grad)


def test_a_shape_that_recurs_is_recorded() -> None:
    """The call that records is replayed too, since a capture computes nothing."""
    run = Run()
    results = [run.step() for _ in range(GOING)]
    assert (run.as_usual, Graph.replays, run.graphs.recordings) == (SEEN + 1, 3, 1)
    assert run.optimizer._needs_sync
    assert {(float(loss), size, float(log["loss"])) for loss, size, log in results} == {(6.0, 6, 6.0)}


def test_recordings_share_memory() -> None:
    run = Run()
    for rows in (2, 3, 4):
        for _ in range(GOING):
            run.step(rows)
    first, *others = Graph.pools
    assert run.graphs.recordings == len(Graph.pools) == 3
    assert first is None and others == 2 * [next(iter(run.graphs._recordings.values())).graph]


def test_a_number_of_masked_tokens_is_passed_on() -> None:
    """It is no part of the shape."""
    run = Run()
    sizes = [run.step(masked=number)[1] for number in range(GOING)]
    assert sizes == list(range(GOING))
    assert (run.as_usual, Graph.replays, run.graphs.recordings) == (SEEN + 1, 3, 1)


MIXTURE = ["--criterion", "masked_lm_moe_cross_entropy", *EXPERTS]
MODELS: dict[str, tuple[str, list[str], bool]] = {
    "causal": ("gpt_magneto_small", ["--criterion", "linear_cross_entropy"], True),
    "its accuracy": ("gpt_magneto_small", ["--criterion", "label_smoothed_cross_entropy", "--report-accuracy"], False),
    "masked": ("bert_magneto_small", MASKED, True),
    "masked with experts": ("bert_magneto_small", [*MASKED, *MIXTURE], False),
    "masked LongNet": ("bert_magneto_small", [*MASKED, "--segment-length", "[4,8]", "--dilated-ratio", "[1,2]"], False),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_and_criterions_that_are_recorded(name: str, language_data: Path, tmp_path: Path) -> None:
    arch, flags, expected = MODELS[name]
    trainer = make_trainer(language_data, tmp_path, *flags, arch=arch)
    trainer.cfg.model.compile = True  # later than the model is built, which compiles nothing
    assert can_record(trainer.cfg, trainer.model, trainer.criterion, torch.device("cuda")) is expected
    assert not can_record(trainer.cfg, trainer.model, trainer.criterion, torch.device("cpu"))
    trainer.criterion.scale = nn.Parameter(torch.ones(()))
    assert not can_record(trainer.cfg, trainer.model, trainer.criterion, torch.device("cuda"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"label_smoothing": 0.1}, True), ({"mixup": 0.2}, False), ({"cutmix": 1.0}, False)],
    ids=str,
)
def test_image_models_that_are_recorded(changes: dict[str, float], expected: bool) -> None:
    """A mixture of images would be drawn once for all batches. LongViT's dilated attention waits for the device."""
    criterion = ImageClassificationCriterion(ImageClassificationOptions(**changes), SimpleNamespace())
    sizes: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "encoder_layers": 1,
        "encoder_embed_dim": 8,
        "encoder_attention_heads": 2,
    }
    plain, dilated = ViTModel(ViTConfig(**sizes), 5), LongViTClassifier(LongViTConfig(**sizes), 5)
    training = SimpleNamespace(distributed_world_size=1, ddp_backend="pytorch_ddp")
    cfg = SimpleNamespace(
        model=SimpleNamespace(compile=True),
        distributed_training=training,
        common=SimpleNamespace(amp=False, bf16=True),
        ema=SimpleNamespace(store_ema=False),
    )
    assert can_record(cfg, plain, criterion, torch.device("cuda")) is expected
    assert not can_record(cfg, dilated, criterion, torch.device("cuda"))


def test_batches_of_images_have_no_padding() -> None:
    """Those that are read a row at a time are no tensors, and are not recorded."""
    assert is_free_of_padding({"net_input": {"patches": torch.zeros(2, 4, 3, 4, 4)}})
    assert not is_free_of_padding({"net_input": {"patches": [object()]}})
    assert not is_free_of_padding({"net_input": {"patches": torch.zeros(2), "src_tokens": torch.zeros(2, 3)}})


@pytest.mark.parametrize("batch", [{"padded": True}, {"ignore_grad": True}], ids=str)
def test_batches_that_run_as_usual(batch: dict[str, bool]) -> None:
    run = Run()
    for _ in range(GOING):
        run.step(**batch)
    assert (run.as_usual, Graph.replays) == (GOING, 0)


def test_modules_that_are_watched_run_as_usual() -> None:
    run = Run()
    for _ in range(GOING):
        run.step()
    run.model.register_forward_hook(lambda *_: None)
    run.step()
    assert (run.as_usual, Graph.replays) == (SEEN + 2, 3)


def test_models_of_watched_modules_are_not_recorded() -> None:
    run = Run()
    run.model.add_module("part", nn.ReLU())
    run.model.get_submodule("part").register_forward_hook(lambda *_: None)
    for _ in range(GOING):
        run.step()
    assert (run.as_usual, Graph.replays) == (GOING, 0)


def test_a_loss_scale_is_part_of_a_recording() -> None:
    run = Run()
    run.optimizer.scaler = SimpleNamespace(loss_scale=128.0)
    for _ in range(GOING):
        run.step()
    run.optimizer.scaler.loss_scale = 64.0
    run.step()
    assert run.as_usual == SEEN + 2


@pytest.mark.parametrize("first_is_trained", [True, False])
def test_gradients_in_another_place_are_another_recording(first_is_trained: bool) -> None:
    """As in the second batch of --update-freq 2, whose gradients are added; with --lora-rank the first weight has
    none."""
    run = Run()
    run.model.weight.requires_grad_(first_is_trained)
    for _ in range(GOING):
        run.step()
    for p in run.model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    run.step()
    assert run.as_usual == SEEN + 2


def test_few_shapes_are_kept() -> None:
    run = Run()
    for rows in range(1, MOST + 3):
        for _ in range(GOING):
            run.step(rows)
    assert (run.graphs.recordings, Graph.replays) == (MOST, 3 * MOST)


def test_a_recording_that_is_no_longer_used_makes_room() -> None:
    """As after the fifth loss scale of a run with --fp16."""
    run = Run()
    for rows in range(1, MOST + 2):
        for _ in range(2 * RECENT):
            run.step(rows)
    usual = run.as_usual
    run.step(MOST + 1)
    run.step(MOST)
    assert (run.as_usual, run.graphs.recordings) == (usual, MOST)
    run.step(1)
    assert run.as_usual == usual + 1, "the first one's made room"


def test_shapes_that_do_not_recur_are_forgotten() -> None:
    """Batches of all lengths must not grow the host's memory, and a shape that does recur is still recorded."""
    run = Run()
    for rows in range(1, 3 * RECENT):
        run.step(rows)
        run.step(rows=3 * RECENT)
    assert len(run.graphs._seen) <= RECENT
    assert run.graphs.recordings == 1


def test_nothing_is_counted_when_no_more_can_be_recorded() -> None:
    run = Run()
    for rows in range(1, MOST + 3):
        for _ in range(GOING):
            run.step(rows)
    assert not run.graphs._seen


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError("CUDA error: out of memory")], ids=repr)
def test_a_full_device_ends_recording(
    error: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run()
    for _ in range(SEEN):
        run.step()

    def full(*_: Any, **__: Any) -> Any:
        run.model.weight.grad = torch.full_like(run.model.weight, torch.nan)
        raise error

    monkeypatch.setattr(torch.cuda, "graph", full)
    for _ in range(3):
        run.step()
    assert (run.as_usual, Graph.replays) == (SEEN + 3, 0)
    assert run.model.weight.grad is None
    assert caplog.text.count("do not fit into the device's memory") == 1


def test_a_recording_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    for _ in range(SEEN):
        run.step()

    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    with pytest.raises(RuntimeError, match="drop --compile"):
        run.step()


def test_recordings_end_before_their_process() -> None:
    """Before modules are taken apart, with them groups of processes. The first of the functions that Python calls at
    its exit is the last one to be called."""
    done = run_python(
        """
        import atexit, os, sys
        atexit.register(lambda: (sys.stdout.flush(), os._exit(0)))
        from torchscale_fairseq.hooks.training.step_graphs import StepGraphs
        class Recording:
            def __del__(self):
                print("freed")
        graphs = StepGraphs(None)
        graphs._recordings["shape"] = Recording()
        """
    )
    assert done.check().stdout == "freed\n"


def test_a_parameter_that_some_batches_leave_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first gradient in an update replaces none, the second one is added to it."""
    emulate(monkeypatch.setattr)
    model = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))])

    def train_step(sample: Any, *_: Any) -> Any:
        loss = sum(p for p in model[: sample["used"]])
        loss.backward()
        return loss, 1, {}

    graphs = StepGraphs(train_step)
    tokens = note_no_padding(torch.zeros(1, 2))
    for _ in range(2 * GOING):
        model.zero_grad()
        for used in (1, 2, 2):
            graphs({"net_input": {"src_tokens": tokens}, "used": used}, model, None, SimpleNamespace(), 0)
        assert [float(p.grad) for p in model] == [3, 2]
