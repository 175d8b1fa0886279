"""Gradients that processes average in buckets, as recorded updates on several GPUs need it."""

import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import words
from tests.emulated_graphs import EMULATING
from tests.fairseq_cli import run_fairseq, run_gloo, run_processes, tiny_language_data
from tests.printed import printed
from torchscale_fairseq.hooks.training.gradient_sums import can_sum
from torchscale_fairseq.hooks.training.step_graphs import SEEN

AS_IF_RECORDED = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.training import trainer
trainer.can_record = lambda *_: True
"""
FROM_HALVES = """
from torchscale_fairseq import plugin
plugin.register()
from tests.plugin.halves import update_halves
from torchscale_fairseq.optim import fused_adam_torch
def update_and_tell(*tensors):
    update_halves(*tensors)
    print("read halves", flush=True)
fused_adam_torch.DEVICES = ("cpu",)
fused_adam_torch.update_from_halves = update_and_tell
"""
"""As on a GPU."""

WITHOUT_MEMORY = """
import os, torch
from fairseq.tasks.fairseq_task import FairseqTask
step, batches = FairseqTask.train_step, []
def train_step(*arguments, **keywords):
    batches.append(1)
    if os.environ["RANK"] == "1" and len(batches) == {batch}:
        raise torch.OutOfMemoryError("out of memory")
    return step(*arguments, **keywords)
FairseqTask.train_step = train_step
"""
SMALL_BUCKETS = ["--bucket-cap-mb", "0"]
"""Of one parameter each."""
GLOO = """
import torch
from torch import nn
from torchscale_fairseq.hooks.training import gradient_sums
from torchscale_fairseq.hooks.training.gradient_sums import GradientSums

rank, world = torch.distributed.get_rank(), torch.distributed.group.WORLD
events = []
average = gradient_sums._average
def average_and_note(gradients, group):
    events.append(tuple(gradients[0].shape))
    return average(gradients, group)
gradient_sums._average = average_and_note

def model_of(*widths):
    layers = [nn.Linear(n, m, bias=False) for n, m in zip(widths[:-1], widths[1:])]
    for layer in layers:
        nn.init.ones_(layer.weight)
    return nn.Sequential(*layers)

def backward(wrapper, factor):
    wrapper(torch.full((1, 2), float(factor))).sum().backward()
"""
"""Small linear models, all of whose gradients are proportional to the input; ``events`` notes sums as they begin."""


def gloo(code: str) -> None:
    """Run lines of Python after GLOO in two processes."""
    assert run_gloo(2, GLOO + textwrap.dedent(code)).check().stdout.count("passed") == 2


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
@pytest.mark.parametrize("freq", [1, 2])
def test_two_processes_train_what_one_does(freq: int, backend: str, tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    options = ["--optimizer", "sgd", "--lr", "0.1", "--max-update", "2", "--dropout", "0", *SMALL_BUCKETS]
    run_fairseq("train", [*words(data, tmp_path / "one"), *options, "--update-freq", 2 * freq]).check()
    two = [*words(data, tmp_path / "two"), *options, "--update-freq", freq, "--ddp-backend", backend]
    run_processes(2, "train", two, before=AS_IF_RECORDED).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)


@pytest.mark.parametrize("ours", [AS_IF_RECORDED, ""], ids=["ours", "torch's"])
def test_the_optimizer_reads_averages_in_half_precision(ours: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    data = tiny_language_data(tmp_path)
    options = ["--bf16", "--optimizer", "fused_adam_torch", "--clip-norm", "0.5", "--dropout", "0"]
    options += ["--max-update", str(SEEN)]
    for name, before in (("usual", ""), ("halves", FROM_HALVES)):
        done = run_processes(2, "train", [*words(data, tmp_path / name), *options], before=before + ours).check()
    assert done.output.count("read halves") == 2 * SEEN
    assert_same_weights(tmp_path / "usual", tmp_path / "halves", 1e-4)


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
@pytest.mark.parametrize("freq", [1, 2])
def test_recorded_updates_are_those_of_one_process(freq: int, backend: str, tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    options = ["--optimizer", "sgd", "--lr", "0.1", "--max-update", "12", "--dropout", "0", "--disable-validation"]
    options += ["--criterion", "linear_cross_entropy", *SMALL_BUCKETS]
    run_fairseq("train", [*words(data, tmp_path / "one"), *options, "--update-freq", 2 * freq]).check()
    two = [*words(data, tmp_path / "two"), *options, "--update-freq", freq, "--ddp-backend", backend]
    replays = run_processes(2, "train", two, before=EMULATING).check().output.count("replayed")
    assert replays >= 4
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-5)


@pytest.mark.parametrize("bucket_bytes", [2**26, 28, 0])
@pytest.mark.parametrize("early", [True, False])
def test_gradients_are_averaged(early: bool, bucket_bytes: int) -> None:
    """Of two types and layouts, and where a process or both have none; a parameter that does not learn gets none."""
    gloo(
        f"""
        model = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (5,), (), (4,), (3,))])
        model[1].data = model[1].bfloat16()
        model[4].requires_grad_(False)
        laid_out = torch.arange(6.0).view(3, 2).t()
        model[0].grad = laid_out * (rank + 1)
        model[1].grad = torch.full((5,), rank + 1.0).bfloat16()
        if rank:
            model[2].grad = torch.tensor(3.0)
        wrapper = GradientSums(model, world, early={early}, bucket_bytes={bucket_bytes})
        with wrapper.no_sync():
            wrapper.sum_rest()
            wrapper.all_reduce_grads()
        assert torch.equal(model[0].grad, laid_out * (rank + 1))
        wrapper.sum_rest()
        wrapper.all_reduce_grads()
        assert torch.equal(model[0].grad, laid_out * 1.5) and float(model[2].grad) == 1.5
        assert torch.equal(model[1].grad, torch.full((5,), 1.5).bfloat16())
        assert torch.equal(model[3].grad, torch.zeros(4)) and model[4].grad is None
        """
    )


def test_processes_begin_with_the_weights_of_the_first() -> None:
    """But for experts, and not where torch's DistributedDataParallel is not asked for."""
    gloo(
        """
        from torchscale_fairseq.core.parallel.expert_parameters import mark_expert
        for early in (True, False):
            model = nn.ParameterList([torch.full((3,), rank + 1.0), torch.full((2,), rank + 1.0)])
            model.register_buffer("counts", torch.full((4,), rank + 1))
            mark_expert(model[1], None)
            GradientSums(model, world, early=early, bucket_bytes=0)
            assert model[1].tolist() == [rank + 1.0] * 2
            assert model[0].tolist() == [1.0 if early else rank + 1.0] * 3
            assert model.counts.tolist() == [1 if early else rank + 1] * 4
        """
    )


def test_sums_begin_in_the_backward_pass() -> None:
    """But for micro batches before the last one, whose gradients they add up."""
    gloo(
        """
        model = model_of(2, 3, 4)
        model[0].register_full_backward_hook(lambda *_: events.append("first layer"))
        wrapper = GradientSums(model, world, early=True, bucket_bytes=0)
        with wrapper.no_sync():
            backward(wrapper, rank)
            wrapper.sum_rest()
        assert events == ["first layer"]
        backward(wrapper, rank)
        assert events[1:] == [(4, 3), "first layer", (3, 2)]
        wrapper.sum_rest()
        wrapper.all_reduce_grads()
        assert len(events) == 4
        assert torch.equal(model[0].weight.grad, torch.full((3, 2), 4.0))
        """
    )


def test_one_process_replays_what_another_computes_as_usual() -> None:
    """The second bucket has no gradient in the recording, so that it and the third one are summed at its end."""
    gloo(
        """
        gradient_sums.EXTERNAL = True
        model = model_of(2, 3, 4, 5)
        model.insert(2, nn.Linear(7, 1))
        wrapper = GradientSums(model, world, early=True, bucket_bytes=0)
        marks = []
        compute = lambda: model[3](model[1](model[0](torch.full((1, 2), rank + 1.0)))).sum().backward()
        if rank:
            with wrapper.recording() as marks:
                compute()
            assert marks == [None] and not events
        else:
            compute()
            assert events == [(5, 4)]
        wrapper.sum_rest(marks)
        figures = torch.ones(1)
        torch.distributed.all_reduce(figures)
        wrapper.all_reduce_grads()
        assert events == [(5, 4), (1,), (1, 7), (4, 3), (3, 2)] and float(figures) == 2
        assert torch.equal(model[0].weight.grad, torch.full((3, 2), 30.0))
        assert torch.equal(model[2].weight.grad, torch.zeros(1, 7))
        """
    )


def test_a_process_without_memory_takes_part_in_the_sums() -> None:
    """As if fairseq had no batch for it: it forgets its gradients, and gets those of the others."""
    gloo(
        """
        from types import SimpleNamespace
        from fairseq.distributed import ModuleProxyWrapper
        from torchscale_fairseq.hooks.training.step_graphs import StepGraphs

        model = model_of(2, 3, 4)
        wrapper = ModuleProxyWrapper(GradientSums(model, world, early=True, bucket_bytes=0))
        def train_step(sample, model, *_):
            if rank:
                raise torch.OutOfMemoryError("out of memory")
            backward(model, 1)
        graphs = StepGraphs(train_step)
        for _ in range(2):
            model.zero_grad()
            try:
                graphs({}, wrapper, None, SimpleNamespace(), 0, ignore_grad=True)
            except torch.OutOfMemoryError:
                model.zero_grad()
            figures = torch.ones(1)
            torch.distributed.all_reduce(figures)
            wrapper.all_reduce_grads()
            assert float(figures) == 2
            assert torch.equal(model[0].weight.grad, torch.full((3, 2), 2.0))
            assert torch.equal(model[1].weight.grad, torch.full((4, 3), 1.0))
        """
    )


def test_a_batch_without_memory_adds_nothing() -> None:
    """Not even gradients that it has computed. What it held is free when zeros are made for it."""
    gloo(
        """
        import weakref
        from types import SimpleNamespace
        from fairseq.distributed import ModuleProxyWrapper
        from torchscale_fairseq.hooks.training.step_graphs import StepGraphs

        model = model_of(2, 3, 4)
        wrapper = ModuleProxyWrapper(GradientSums(model, world, early=False, bucket_bytes=0))
        held = []
        def train_step(sample, model, *_):
            activations = torch.ones(1)
            held.append(weakref.ref(activations))
            backward(model, 1)
            if rank:
                raise RuntimeError("CUDA error: out of memory")
        def average_and_look(gradients, group):
            assert held[0]() is None
            return average(gradients, group)
        gradient_sums._average = average_and_look
        try:
            StepGraphs(train_step)({}, wrapper, None, SimpleNamespace(), 0, ignore_grad=True)
        except RuntimeError:
            model.zero_grad()
        figures = torch.ones(1)
        torch.distributed.all_reduce(figures)
        wrapper.all_reduce_grads()
        assert float(figures) == 2
        assert torch.equal(model[0].weight.grad, torch.full((3, 2), 2.0))
        """
    )


@pytest.mark.parametrize("before", [EMULATING, ""], ids=["recorded", "stock's"])
@pytest.mark.parametrize("optimizer", ["sgd", "fused_adam_torch"])
def test_training_goes_on_after_a_batch_without_memory(optimizer: str, before: str, tmp_path: Path) -> None:
    """Figures are summed, at once or late, without those of the batch; fairseq compares the norms. In the last update
    of the epoch one process has no batch."""
    options = [*words(tiny_language_data(tmp_path), tmp_path), "--optimizer", optimizer, *SMALL_BUCKETS]
    options += ["--max-update", "5", "--ddp-backend", "legacy_ddp", "--criterion", "linear_cross_entropy"]
    done = run_processes(2, "train", options, before=WITHOUT_MEMORY.format(batch=3) + before).check()
    assert printed(done.output, "wpb", "train_inner") == [128, 128, 64, 128, 64]
    assert ("replayed" in done.output) == (before == EMULATING)


def test_a_process_without_memory_for_its_first_batch_ends(tmp_path: Path) -> None:
    options = [*words(tiny_language_data(tmp_path), tmp_path), "--optimizer", "sgd"]
    done = run_processes(2, "train", options, before=WITHOUT_MEMORY.format(batch=1) + AS_IF_RECORDED)
    assert done.returncode
    assert "OutOfMemoryError" in done.output
    assert "gloo::EnforceNotMet" not in done.output


def test_a_micro_batch_without_memory_leaves_the_sums_of_the_update() -> None:
    gloo(
        """
        model = model_of(2, 3)
        wrapper = GradientSums(model, world, early=True, bucket_bytes=0)
        try:
            with wrapper.no_sync():
                if rank:
                    raise torch.OutOfMemoryError
        except torch.OutOfMemoryError:
            pass
        backward(wrapper, rank)
        assert events == [(3, 2)]
        """
    )


def test_a_model_that_is_watched_is_not_recorded() -> None:
    """fairseq's NanDetector watches the model within its wrappers. Recording it would fail here."""
    gloo(
        """
        from types import SimpleNamespace
        from fairseq.distributed import ModuleProxyWrapper
        from torchscale_fairseq.hooks.training.padding import note_no_padding
        from torchscale_fairseq.hooks.training.step_graphs import SEEN, StepGraphs

        model = model_of(2, 3)
        wrapper = ModuleProxyWrapper(GradientSums(model, world, early=True, bucket_bytes=0))
        sample = {"net_input": {"src_tokens": note_no_padding(torch.zeros(1, 2))}}
        graphs = StepGraphs(lambda sample, model, *_: backward(model, 1))
        def update():
            graphs(sample, wrapper, None, SimpleNamespace(), 0)
            wrapper.all_reduce_grads()
            model.zero_grad()
        handle = model.register_forward_hook(lambda *_: None)
        for _ in range(SEEN + 1):
            update()
        handle.remove()
        for _ in range(SEEN):
            update()
        try:
            update()
            raise SystemExit("nothing is recorded")
        except RuntimeError:
            pass
        """
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"ddp_backend": "legacy_ddp"}, True),
        ({"ddp_backend": "slowmo"}, False),
        ({"ddp_backend": "fully_sharded"}, False),
        ({"ddp_comm_hook": "fp16"}, False),
        ({"broadcast_buffers": True}, False),
        ({"use_bmuf": True}, False),
        ({"heartbeat_timeout": 60}, False),
    ],
    ids=str,
)
def test_which_runs_leave_their_gradients_to_us(changes: dict[str, Any], expected: bool) -> None:
    given = {"ddp_backend": "pytorch_ddp", "ddp_comm_hook": "none", "broadcast_buffers": False, "use_bmuf": False}
    given |= {"heartbeat_timeout": -1} | changes
    use_bmuf = given.pop("use_bmuf")
    cfg = SimpleNamespace(
        distributed_training=SimpleNamespace(**given), optimization=SimpleNamespace(use_bmuf=use_bmuf)
    )
    assert can_sum(cfg) is expected
