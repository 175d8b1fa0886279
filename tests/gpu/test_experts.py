"""Mixtures of experts on one GPU, and shared out over two."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.mixtures import EXPERTS, mixture
from tests.core.models import encoder_decoder, tokens
from tests.helpers import triple
from torchscale_fairseq.core.ops.grouped import _GroupedLinear, grouped_linear, grouped_norm
from torchscale_fairseq.core.ops.grouped_products import BATCHED, KERNEL, LOOP, products_for
from torchscale_fairseq.core.ops.segments import Segments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BOUNDS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Relative RMS error against float64 on the CPU."""
SIZES = (40, 0, 77, 11)


def segments_on(device: torch.device) -> Segments:
    return Segments(torch.tensor(SIZES, device=device))


@pytest.fixture(autouse=True)
def full_precision_matmul() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def leaves(dtype: torch.dtype) -> list[Tensor]:
    """Rows, weights and biases of four groups on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((sum(SIZES), 64), (4, 128, 64), (4, 128))
    return [torch.randn(s, generator=generator, device="cuda").to(dtype).requires_grad_() for s in shapes]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    direction = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output).to(output.dtype)
    return [output, *torch.autograd.grad((output * direction).sum(), inputs)]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().cpu().requires_grad_() for x in inputs]


def assert_near(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for index, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        error = (actual.detach().cpu().double() - wanted.detach()).norm() / wanted.norm()
        assert error < bound, f"tensor {index}: relative RMS error {error}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_products(dtype: torch.dtype) -> None:
    """Every form, values and gradients, with a group without rows; memory is not clean beforehand."""
    inputs = leaves(dtype)
    reference = exact(inputs)
    expected = with_gradients(grouped_linear(*triple(reference), segments_on(reference[0].device)), reference)
    segments = segments_on(inputs[0].device)
    forms = {"chosen": products_for(inputs[0], inputs[1], segments), "batched": BATCHED, "loop": LOOP}
    for name, form in forms.items():
        dirty = [torch.full((4, 128, 64), float("nan"), device="cuda", dtype=dtype) for _ in range(4)]
        del dirty
        found = with_gradients(_GroupedLinear.apply(*inputs, segments, form), inputs)
        assert_near(found, expected, BOUNDS[dtype])
        assert found[2][1].eq(0).all() and found[3][1].eq(0).all(), name


def test_the_grouped_kernel_is_used_where_it_exists() -> None:
    inputs = leaves(torch.bfloat16)
    has_kernel = torch.cuda.get_device_capability() >= (9, 0) and hasattr(torch.nn.functional, "grouped_mm")
    assert products_for(inputs[0], inputs[1], segments_on(inputs[0].device)) is (KERNEL if has_kernel else BATCHED)
    if has_kernel:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            with_gradients(grouped_linear(*triple(inputs), segments_on(inputs[0].device)), inputs)
        assert sum(event.count for event in profile.key_averages() if event.key.endswith("_grouped_mm")) >= 3


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_norm(dtype: torch.dtype, kind: str) -> None:
    x = leaves(dtype)[0]
    weight, shift = (torch.randn(4, 64, device="cuda").to(dtype).requires_grad_() for _ in range(2))
    inputs = [x, weight, shift] if kind == "layernorm" else [x, weight]
    reference = exact(inputs)

    def norm(tensors: list[Tensor]) -> Tensor:
        x, weight, *bias = tensors
        return grouped_norm(x, weight, bias[0] if bias else None, segments_on(x.device), eps=1e-5)

    assert_near(with_gradients(norm(inputs), inputs), with_gradients(norm(reference), reference), BOUNDS[dtype])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_equals_cpu(dtype: torch.dtype, gated: bool) -> None:
    """Every token goes to all experts, so that rounding cannot send it elsewhere."""
    layer = mixture(4, gated=gated, top_k=4, capacity_factor=None)
    x = torch.randn(2, 50, 6, dtype=dtype).double().requires_grad_()
    on_gpu = mixture(4, gated=gated, top_k=4, capacity_factor=None).to("cuda", dtype)
    y = x.detach().to("cuda", dtype).requires_grad_()
    layer.load_state_dict({k: v.double().cpu() for k, v in on_gpu.state_dict().items()})
    found, expected = (
        with_gradients(module(given)[0], [given, *module.experts.parameters()])
        for module, given in ((on_gpu, y), (layer, x))
    )
    assert_near(found, expected, bound=BOUNDS[dtype] * 2)


def test_model_equals_cpu() -> None:
    """Logits, balance losses and gradients of an encoder-decoder with X-MoE's router, in training mode."""
    model = encoder_decoder(**EXPERTS, use_xmoe=True).train()
    on_gpu = encoder_decoder(**EXPERTS, use_xmoe=True).train().cuda()
    source, target = tokens(2, 30), tokens(2, 20)
    results = []
    for module, device in ((on_gpu, "cuda"), (model, "cpu")):
        logits, extra = module(source.to(device), target.to(device))
        balance = torch.stack([loss for loss in extra["l_aux"] if loss is not None])
        (logits.square().mean() + balance.sum()).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        results.append([logits, balance, gradient])
    assert_near([x.double() for x in results[0]], [x.double() for x in results[1]], 1e-4)


class TestCommands:
    """fairseq's own commands."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        pytest.importorskip("fairseq")
        from tests.fairseq_cli import tiny_translation_data

        return tiny_translation_data(tmp_path_factory.mktemp("gpu-expert-data"))

    def train(self, data: Path, folder: Path, *flags: object, gpus: int = 1, before: str = "", **options: Any) -> Any:
        """Three updates of four batches each, over all GPUs; in several by torchrun over NCCL."""
        from tests.fairseq_cli import TORCHRUN, USER_DIR, run_fairseq, run_program
        from tests.plugin.shrunk import shrunk
        from torchscale_fairseq import models

        assert models  # imported, they are registered
        words = [data, *shrunk("mt_xmoe_small"), "--share-all-embeddings", "--dropout", "0"]
        words += ["--criterion", "moe_label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--batch-size", "4"]
        words += ["--moe-gate-loss-wt", "0.1", "--clip-norm", "0.5", "--update-freq", 4 // gpus, "--max-update", "3"]
        words += ["--num-workers", "0", "--log-format", "simple", "--log-interval", "1", "--save-dir", folder, *flags]
        if gpus == 1:
            return run_fairseq("train", words, environment={"CUDA_VISIBLE_DEVICES": "0"}, **options)
        code = f"import sys\n{before}\nfrom fairseq_cli.train import cli_main\ncli_main()"
        program = [*TORCHRUN, "--standalone", "--nproc_per_node", gpus, "--no-python", sys.executable, "-c", code]
        devices = ",".join(map(str, range(gpus)))
        words += ["--user-dir", USER_DIR]
        return run_program([*program, *words], environment={"CUDA_VISIBLE_DEVICES": devices}, **options)

    @pytest.mark.parametrize("precision", ["--bf16", "--fp16", "--memory-efficient-fp16", "--memory-efficient-bf16"])
    def test_trains_and_generates(self, precision: str, data: Path, tmp_path: Path) -> None:
        from tests.fairseq_cli import run_fairseq

        adam = ["--optimizer", "adam", "--lr", "1e-2", precision, "--moe-gating-use-fp32"]
        self.train(data, tmp_path, *adam).check()
        resumed = self.train(data, tmp_path, *adam, "--max-update", "6").check()
        assert "@ 3 updates" in resumed.output
        words = [data, "--path", tmp_path / "checkpoint_last.pt", "--batch-size", "8"]
        words += [f"--{precision.split('-')[-1]}", "--required-batch-size-multiple", "1"]
        output = run_fairseq("generate", words, environment={"CUDA_VISIBLE_DEVICES": "0"}).check().output
        assert sum(line.startswith("H-") for line in output.splitlines()) == 21

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    @pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
    @pytest.mark.parametrize("experts", [4, 1], ids=["split", "replicated"])
    def test_two_gpus_equal_one(self, experts: int, backend: str, data: Path, tmp_path: Path) -> None:
        """Weights after three updates by SGD, over NCCL. fairseq itself compares the norms of the gradients."""
        from torchscale_fairseq.checkpoints.reading import load_checkpoint

        flags = ["--optimizer", "sgd", "--lr", "0.1", "--moe-expert-count", experts]
        flags += ["--moe-top1-expert"] if experts == 1 else []
        self.train(data, tmp_path / "one", *flags).check()
        self.train(data, tmp_path / "two", *flags, "--ddp-backend", backend, gpus=2).check()
        one, two = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("one", "two"))
        assert list(one) == list(two)
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0, msg=name)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    @pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
    def test_two_gpus_in_low_precision(self, precision: str, data: Path, tmp_path: Path) -> None:
        """Sharded checkpoints, which one process reads."""
        flags = ["--optimizer", "adam", "--lr", "1e-2", precision]
        self.train(data, tmp_path, *flags, "--moe-checkpoint-format", "sharded", gpus=2).check()
        assert len(list((tmp_path / "experts").iterdir())) == 2
        resumed = self.train(data, tmp_path, *flags, "--max-update", "6").check()
        assert "@ 3 updates" in resumed.output

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    def test_one_failing_gpu_ends_the_job(self, data: Path, tmp_path: Path) -> None:
        before = """
import os
import torch.distributed as dist
exchange, calls = dist.all_to_all_single, []
def failing(*arguments, **keywords):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) > 10:
        raise RuntimeError("CUDA out of memory")
    return exchange(*arguments, **keywords)
dist.all_to_all_single = failing
"""
        done = self.train(data, tmp_path, "--optimizer", "sgd", "--lr", "0.1", gpus=2, before=before, timeout=120)
        assert done.returncode != 0 and "CUDA out of memory" in done.output
