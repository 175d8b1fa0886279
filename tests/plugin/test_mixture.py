"""Mixtures of experts through fairseq: criterions, training of every kind of model, what is logged."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("fairseq")

from fairseq.logging import metrics
from fairseq.optim.fp16_optimizer import FP16Optimizer

from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq, tiny_language_data
from tests.plugin.mixtures import LANGUAGE, MASKED
from tests.plugin.shrunk import EXPERTS, shrunk
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.core.layers.moe import RoutingReport
from torchscale_fairseq.core.parallel.expert_parameters import ExpertGradients
from torchscale_fairseq.core.parallel.groups import ExpertSplit
from torchscale_fairseq.criterions import _mixture
from torchscale_fairseq.criterions._mixture import LOGGED, MixtureCriterion, MixtureOptions
from torchscale_fairseq.hooks.experts.gradient_clipping import clip_with_experts, mark_copies


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("mixture-data"))


def train(data: Path, folder: Path, *flags: object, arch: str = "gpt_magneto_small") -> Finished:
    arguments = [data, *shrunk(arch), *FEW_UPDATES, "--cpu", "--save-dir", folder, *flags]
    return run_fairseq("train", arguments)


class Plain:
    """A criterion whose loss is the sum of what the model returns."""

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, int, dict[str, Any]]:
        output = model(**sample["net_input"])[0]
        return output.sum(), 5, {"loss": output.sum().item()}

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        metrics.log_scalar("loss", sum(log["loss"] for log in logging_outputs))


class Mixed(MixtureCriterion, Plain):
    pass


def report(balance: float, z: float) -> RoutingReport:
    figures = {name: torch.tensor(float(i)) for i, name in enumerate(LOGGED[2:])}
    return RoutingReport(torch.tensor(balance, requires_grad=True), torch.tensor(z, requires_grad=True), figures)


@pytest.mark.parametrize(("method", "balance"), [("average", 2.0), ("sum", 4.0)])
def test_losses_are_added_per_unit_of_sample_size(method: str, balance: float) -> None:
    criterion = Mixed()
    criterion.mixture = MixtureOptions(moe_gate_loss_wt=0.1, moe_gate_loss_combine_method=method, moe_z_loss_wt=0.01)
    reports = [report(1.0, 6.0), None, report(3.0, 2.0)]
    model = lambda **_: (torch.tensor([7.0]), {"routing": reports})  # noqa: E731
    loss, sample_size, logged = criterion.forward(model, {"net_input": {}})
    assert sample_size == 5
    assert math.isclose(loss.item(), 7.0 + 5 * (0.1 * balance + 0.01 * 4.0), rel_tol=1e-6)
    assert logged["loss"] == 7.0 and logged["moe_gate_loss"] == 2.0 and logged["moe_batches"] == 1
    loss.backward()
    assert math.isclose(reports[0].balance_loss.grad.item(), 5 * 0.1 * balance / 4, rel_tol=1e-6)


def test_a_dense_model_has_the_plain_loss() -> None:
    criterion = Mixed()
    criterion.mixture = MixtureOptions()
    model = lambda **_: (torch.tensor([7.0]), {"routing": [None, None]})  # noqa: E731
    assert criterion.forward(model, {"net_input": {}})[2] == {"loss": 7.0}


def test_figures_are_means_over_batches_and_processes() -> None:
    logs = [{"loss": 1.0, "moe_batches": n, **{f"moe_{name}": v for name in LOGGED}} for n, v in ((1, 2.0), (3, 12.0))]
    with metrics.aggregate() as meters:
        Mixed.reduce_metrics(logs)
    assert all(meters.get_smoothed_value(f"moe_{name}") == 3.5 for name in LOGGED)


def test_the_recorder_is_the_model_for_everybody_else() -> None:
    model = SimpleNamespace(decoder="decoder")
    assert _mixture._Recorder(model).decoder == "decoder"


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("gpt_magneto_small", LANGUAGE),
        ("gpt_xpos_small", [*LANGUAGE, "--use-xmoe", "--moe-z-loss-wt", "0.001", "--checkpoint-activations"]),
        ("gpt_deepnorm_small", [*LANGUAGE, "--fp16", "--moe-second-expert-policy", "sampling"]),
        ("bert_magneto_small", MASKED),
        ("lm_base", [*LANGUAGE, "--use-xmoe"]),
    ],
)
@pytest.mark.family
def test_trains_loads_and_evaluates(arch: str, flags: list[str], data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path, *flags, *EXPERTS, "--tensorboard-logdir", tmp_path / "tb", arch=arch).check()
    assert "moe_dropped=" in done.output
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for log in ("train_inner", "valid"):
        scalars = EventAccumulator(str(tmp_path / "tb" / log)).Reload().Tags()["scalars"]
        assert {f"moe_{name}" for name in LOGGED} <= set(scalars)
    path = ["--path", tmp_path / "checkpoint_last.pt", "--cpu"]
    if flags[1] == "masked_lm":
        run_fairseq("validate", [data, *path, *MASKED[:4], "--batch-size", "4"]).check()
    else:
        run_fairseq("eval_lm", [data, *path, "--tokens-per-sample", "16", "--batch-size", "4"]).check()
    assert any(".experts.3.fc1.weight" in name for name in load_checkpoint(tmp_path / "checkpoint_last.pt")["model"])


def test_plain_clip_counts_each_expert_like_the_rest(data: Path, tmp_path: Path) -> None:
    norms = {}
    for clip in ("sparse", "plain"):
        done = train(data, tmp_path / clip, *LANGUAGE, *EXPERTS, "--moe-clip", clip, "--clip-norm", "1").check()
        norms[clip] = float(done.output.split("gnorm=")[1].split(",")[0])
    assert norms["plain"] > norms["sparse"] * 1.05


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Any]:
    """Parameters of zeros, which may be marked as an expert's."""
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


@pytest.mark.parametrize("max_norm", [1.0, 100.0, 0.0])
def test_all_gradients_are_clipped_by_one_coefficient(max_norm: float) -> None:
    """Of the norm in which the experts count a quarter; zero is no limit."""
    dense, expert, idle = parameters((3,), (4, 2), (5,))
    expert.expert = ExpertGradients(ExpertSplit(4), norm_weight=1 / 4)
    gradients = [torch.full((3,), 2.0), torch.full((4, 2), 3.0)]
    dense.grad, expert.grad = (gradient.clone() for gradient in gradients)
    norm = clip_with_experts(None)(iter([dense, expert, idle]), max_norm)
    assert norm.item() == pytest.approx(math.sqrt(3 * 2**2 + 8 * 3**2 / 4))
    factor = 1 / norm.item() if max_norm == 1 else 1
    for parameter, gradient in zip((dense, expert), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * factor)
    assert idle.grad is None


def test_copies_in_float32_are_clipped_like_their_parameters() -> None:
    expert, dense = parameters((4, 2), (4, 2), dtype=torch.float16)
    expert.expert = ExpertGradients(ExpertSplit(4), norm_weight=1 / 4)
    build = mark_copies(FP16Optimizer.build_fp32_params.__func__)
    of_expert, of_dense = build(FP16Optimizer, None, [expert, dense], flatten=False)
    assert of_expert.expert is expert.expert and not hasattr(of_dense, "expert")


def test_fine_tunes_with_frozen_routing(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "a", *LANGUAGE, *EXPERTS).check()
    frozen = ["--moe-freeze-routing", "--finetune-from-model", tmp_path / "a/checkpoint_last.pt"]
    train(data, tmp_path / "b", *LANGUAGE, *EXPERTS, *frozen).check()
    before, after = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in "ab")
    for name, value in before.items():
        assert value.equal(after[name]) == ("moe_layer.gate" in name), name


def test_another_number_of_experts_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, *LANGUAGE, *EXPERTS).check()
    done = train(data, tmp_path, *LANGUAGE, *EXPERTS[:2], "--moe-expert-count", "8", "--max-update", "6")
    assert done.returncode == 1
    assert "was trained with --arch gpt_magneto_small" in done.last_line
    assert "parameters are only in this model, such as decoder.layers.0.moe_layer.experts.4" in done.last_line


def test_a_contradiction_is_one_line(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path, *LANGUAGE, "--moe-freq", "1")
    assert "--moe-freq requests experts: --moe-expert-count (0) must be at least 1" in done.last_line
