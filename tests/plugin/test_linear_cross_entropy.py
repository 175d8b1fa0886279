"""``--criterion linear_cross_entropy`` against the stock criterions that it stands for."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.criterions import CRITERION_REGISTRY

from tests.distributed.process_pair import TWO_PROCESSES
from tests.fairseq_cli import (
    FEW_UPDATES,
    TINY_LANGUAGE_MODEL,
    TINY_TRANSFORMER,
    Finished,
    run_beside_fairseq,
    run_fairseq,
)
from tests.helpers import TOLERANCES, assert_close
from tests.plugin.shrunk import EXPERTS, shrunk
from tests.plugin.small_language_model import batch, language_model
from torchscale_fairseq import plugin
from torchscale_fairseq.checkpoints.reading import load_checkpoint

plugin.register()

SGD = ["--optimizer", "sgd", "--lr", "0.1"]
ADAM = ["--optimizer", "adam", "--lr", "1e-3", "--adam-eps", "1e-2"]  # smooth, also where gradients are noise
MODELS = {
    "mt_deepnorm_small": ("translation", shrunk("mt_deepnorm_small")),
    "transformer": ("translation", TINY_TRANSFORMER),
    "gpt_deepnorm_small": ("language", ["--task", "language_modeling", *shrunk("gpt_deepnorm_small")]),
    "transformer_lm": ("language", TINY_LANGUAGE_MODEL),
}
LSTM = ("translation", ["--arch", "lstm", "--encoder-embed-dim", "8", "--decoder-embed-dim", "8"])


@pytest.fixture(scope="session")
def data(translation_data: Path, language_data: Path) -> dict[str, Path]:
    return {"translation": translation_data, "language": language_data}


def train(data: dict[str, Path], model: str, folder: Path, criterion: str, *flags: str) -> Finished:
    kind, options = MODELS.get(model, LSTM)
    arguments = [data[kind], *options, *FEW_UPDATES, "--cpu", "--dropout", "0", "--criterion", criterion, *flags]
    return run_fairseq("train", [*arguments, "--save-dir", folder])


def logged(output: str, names: tuple[str, ...]) -> list[tuple[str, float]]:
    """Figures of training and validation, in their order."""
    return [(name, float(value)) for name, value in re.findall(rf"\b({'|'.join(names)})[ =]([\d.]+)", output)]


def assert_trains_like(
    stock: str, model: str, data: dict[str, Path], folder: Path, tolerance: str, *flags: str
) -> None:
    """Four updates: the same losses and perplexities logged, the same weights saved."""
    criterions = (stock, "moe_linear_cross_entropy" if stock.startswith("moe") else "linear_cross_entropy")
    runs = {name: train(data, model, folder / name, name, *flags).check() for name in criterions}
    names: tuple[str, ...] = ("loss", "ppl", "nll_loss") if "--label-smoothing" in flags else ("loss", "ppl")
    names += ("moe_gate_loss",) if stock.startswith("moe") else ()
    expected, actual = (logged(run.output, names) for run in runs.values())
    assert len(expected) >= 5 * len(names), "four updates and a validation"
    assert [name for name, _ in actual] == [name for name, _ in expected]
    assert [x for _, x in actual] == pytest.approx([x for _, x in expected], rel=2e-3), "three digits are printed"
    weights, ours = (load_checkpoint(folder / name / "checkpoint_last.pt")["model"] for name in criterions)
    t = TOLERANCES[tolerance]
    for name, value in weights.items():
        torch.testing.assert_close(ours[name], value, atol=t.atol, rtol=t.rtol, msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_trains_like_cross_entropy(model: str, data: dict[str, Path], tmp_path: Path) -> None:
    assert_trains_like("cross_entropy", model, data, tmp_path, "float32", *SGD)


def test_trains_like_label_smoothed_cross_entropy(data: dict[str, Path], tmp_path: Path) -> None:
    flags = [*SGD, "--label-smoothing", "0.1", "--sentence-avg", "--update-freq", "2"]
    assert_trains_like("label_smoothed_cross_entropy", "mt_deepnorm_small", data, tmp_path, "float32", *flags)


def test_trains_like_moe_cross_entropy(data: dict[str, Path], tmp_path: Path) -> None:
    assert_trains_like("moe_cross_entropy", "gpt_deepnorm_small", data, tmp_path, "float32", *SGD, *EXPERTS)


@pytest.mark.parametrize("flag", ["--fp16", "--bf16", pytest.param("--memory-efficient-fp16", marks=pytest.mark.slow)])
def test_precisions(flag: str, data: dict[str, Path], tmp_path: Path) -> None:
    tolerance = "bfloat16" if flag == "--bf16" else "float16"
    flags = [*ADAM, flag, "--fp16-init-scale", "4"]
    assert_trains_like("cross_entropy", "gpt_deepnorm_small", data, tmp_path, tolerance, *flags)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sentence_avg", [False, True])
@pytest.mark.parametrize("reduce", [False, True])
def test_values_gradients_and_logs(reduce: bool, sentence_avg: bool, bias: bool) -> None:
    """Stock cross_entropy computes in float32 here too."""
    model, task = language_model()
    if bias:
        model.decoder.output_projection.bias = torch.nn.Parameter(torch.randn(24, dtype=torch.float64))
    results = []
    for name, options in (("cross_entropy", {}), ("linear_cross_entropy", {"label_smoothing": 0.0})):
        criterion = CRITERION_REGISTRY[name](task, sentence_avg=sentence_avg, **options)
        loss, sample_size, logs = criterion(model, batch(), reduce=reduce)
        weights = torch.linspace(1, 2, loss.numel()).view_as(loss)
        results.append((loss, sample_size, logs, torch.autograd.grad((loss * weights).sum(), model.parameters())))
    (loss, sample_size, logs, gradients), ours = results
    assert_close(ours[0].float(), loss.float(), "float32")
    assert ours[1] == sample_size
    assert {name: ours[2][name] for name in logs if name != "loss"} == {k: v for k, v in logs.items() if k != "loss"}
    assert_close(ours[2]["loss"].float(), logs["loss"].float(), "float32")
    assert ours[2]["nll_loss"].equal(ours[2]["loss"])
    for actual, expected in zip(ours[3], gradients, strict=True):
        assert_close(actual, expected, "float32")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduce", [False, True])
def test_a_projection_that_is_more_than_a_product_is_called(reduce: bool, smoothing: float) -> None:
    """A hook, and a class with a forward of its own, have their effect on the loss."""
    model, task = language_model()
    criterion = CRITERION_REGISTRY["linear_cross_entropy"](task, sentence_avg=False, label_smoothing=smoothing)
    projection = model.decoder.output_projection
    weight = projection.weight.detach().clone()
    projection.weight.data *= 3
    (expected, *_), results = criterion(model, batch(), reduce=reduce), []
    projection.weight.data.copy_(weight)
    hook = projection.register_forward_hook(lambda _, __, output: 3 * output)
    results.append(criterion(model, batch(), reduce=reduce)[0])
    hook.remove()
    projection.__class__ = Threefold
    results.append(criterion(model, batch(), reduce=reduce)[0])
    for loss in results:
        assert loss.shape == expected.shape
        assert_close(loss.float(), expected.float(), "float32")


class Threefold(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


ACROSS_PROCESSES = """
def check():
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.dataclass.configs import DistributedTrainingConfig
    from fairseq.models import DistributedFairseqModel
    from tests.plugin.small_language_model import batch, language_model

    gradients = {}
    for name, options in (("cross_entropy", {}), ("linear_cross_entropy", {"label_smoothing": 0.0})):
        for backend in ("pytorch_ddp", "legacy_ddp"):
            model, task = language_model()
            config = DistributedTrainingConfig(tpu=False, ddp_backend=backend)
            wrapped = DistributedFairseqModel(config, model, group, torch.device("cpu"))
            loss, _, _ = CRITERION_REGISTRY[name](task, sentence_avg=False, **options)(wrapped, batch(rank))
            loss.backward()
            if backend == "legacy_ddp":
                wrapped.all_reduce_grads()
            gradients[name, backend] = [parameter.grad for parameter in model.parameters()]
    expected = gradients["cross_entropy", "pytorch_ddp"]
    for key, actual in gradients.items():
        for a, b in zip(actual, expected):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=str(key))

    model, task = language_model()
    config = DistributedTrainingConfig(tpu=False, find_unused_parameters=True)
    wrapped = DistributedFairseqModel(config, model, group, torch.device("cpu"))
    try:
        CRITERION_REGISTRY["linear_cross_entropy"](task, False, 0.0)(wrapped, batch(rank))
    except ValueError as error:
        assert "drop that option, or take --ddp-backend legacy_ddp" in str(error)
    else:
        raise AssertionError("--find-unused-parameters was not refused")
"""


def test_two_processes_share_the_gradients_of_cross_entropy() -> None:
    done = run_beside_fairseq(ACROSS_PROCESSES + TWO_PROCESSES, plugin=True).check()
    assert "rank 0 passed" in done.stdout and "rank 1 passed" in done.stdout


UNSUITABLE = "--criterion linear_cross_entropy needs a decoder with features_only .* use --criterion cross_entropy"


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("gpt_deepnorm_small", ["--label-smoothing", "1.5"], r"--label-smoothing \(1.5\) must lie between 0 and 1"),
        ("transformer_lm", ["--adaptive-softmax-cutoff", "10,20"], UNSUITABLE),
        ("lstm", [], UNSUITABLE),
    ],
    ids=["smoothing", "adaptive_softmax", "no_features_only"],
)
def test_refusals(model: str, flags: list[str], message: str, data: dict[str, Path], tmp_path: Path) -> None:
    result = train(data, model, tmp_path, "linear_cross_entropy", *flags)
    assert result.returncode != 0
    assert re.search(message, result.last_line), result.output[-2000:]
