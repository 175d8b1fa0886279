"""What the CPU tests prove, on a GPU and in its precisions."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.models import VARIANTS, decoder, encoder_decoder, tokens
from tests.helpers import RELATIVE_ERROR_OF_KERNELS, assert_close
from torchscale_fairseq.core.ops.backends import attention
from torchscale_fairseq.core.ops.retention import chunkwise_retention, parallel_retention
from torchscale_fairseq.core.ops.retention_forms import fla_retention
from torchscale_fairseq.core.ops.retention_tables import log_decays

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SMALL = ["--encoder-layers", "2", "--decoder-layers", "2", "--encoder-embed-dim", "64", "--decoder-embed-dim", "64"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def full_precision_matmul() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("padding", ["none", "left", "right", "everything"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sdpa_matches_naive(dtype: torch.dtype, causal: bool, biased: bool, padding: str) -> None:
    """Values and gradients against float64, rows that see nothing included."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    exact = [random(3, 37, 4, 64).to(dtype).double().requires_grad_() for _ in range(3)]
    low = [x.detach().to(dtype).requires_grad_() for x in exact]
    bias = random(1, 4, 37, 37).to(dtype) if biased else None
    index, lengths = torch.arange(37, device="cuda"), torch.tensor([37, 11, 20], device="cuda")[:, None]
    mask = {"none": None, "left": index < 37 - lengths, "right": index >= lengths}.get(padding, index < 37 - lengths)
    if padding == "everything":
        mask[1] = True
    upstream = random(3, 37, 4, 64)
    results = []
    for inputs, backend in ((exact, "naive"), (low, "sdpa")):
        output, _ = attention(*inputs, causal=causal, key_padding_mask=mask, bias=bias, backend=backend)
        gradients = torch.autograd.grad((output * upstream.to(output.dtype)).sum(), inputs)
        results.append((output, *gradients))
    bound = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    for name, naive, fused in zip(("output", "query", "key", "value"), *results, strict=True):
        assert fused.isfinite().all(), name
        error = ((fused.double() - naive).norm() / naive.norm()).item()
        assert error < bound, f"{name}: relative RMS error {error}"
    if padding == "everything":
        assert not results[1][0][1].any()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_steps_match_full_forward(variant: str) -> None:
    model = decoder(**VARIANTS[variant]).cuda()
    target = tokens(3, 20).cuda()
    mask = torch.arange(20, device="cuda") < torch.tensor([0, 7, 12], device="cuda")[:, None]
    full, _ = model(target, mask)
    state: dict = {}
    steps = [model(target[:, :n], mask[:, :n], incremental_state=state)[0] for n in (9, *range(10, 21))]
    assert_close(torch.cat(steps, 1)[~mask], full[~mask], "float32")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_equals_cpu(dtype: torch.dtype) -> None:
    """Logits and gradients of an encoder-decoder, against float64 on the CPU."""
    exact = encoder_decoder(deepnorm=True).double()
    model = encoder_decoder(deepnorm=True).to("cuda", dtype)
    source, target = tokens(2, 30), tokens(2, 20)
    expected, logits = exact(source, target)[0], model(source.cuda(), target.cuda())[0]
    expected.square().mean().backward()
    logits.float().square().mean().backward()
    bound = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]

    def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
        return ((ours.detach().cpu().double() - reference).norm() / reference.norm()).item()

    def gradient(of: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in of.parameters()])

    assert error(logits, expected) < bound
    assert error(gradient(model), gradient(exact)) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blockwise_causal_attention(dtype: torch.dtype) -> None:
    """In blocks of 16 and as one mask over everything."""
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(2, 83, 4, 64, generator=generator, device="cuda", dtype=dtype) for _ in range(3)]
    exact, _ = attention(*(x.double() for x in inputs), causal=True, block=16, backend="naive")
    output, _ = attention(*inputs, causal=True, block=16)
    error = ((output.double() - exact).norm() / exact.norm()).item()
    assert error < {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]


@pytest.mark.parametrize("variant", ["subln", "deepnorm", "xpos", "relative_bias"])
def test_compiled_layers(variant: str) -> None:
    """Logits and gradients of generated kernels are those of eager ones."""
    plain, compiled = (decoder(**VARIANTS[variant], compile=c).cuda() for c in (False, True))
    for length in (20, 33, 47):
        text = tokens(3, length).cuda()
        results = []
        for model in (plain, compiled):
            model.zero_grad()
            logits, _ = model(text)
            logits.square().mean().backward()
            results.append((logits, torch.cat([p.grad.flatten() for p in model.parameters()])))
        for expected, actual in zip(*results, strict=True):
            assert (actual - expected).norm() / expected.norm() < 1e-5


class TestCommands:
    """fairseq's own commands on the GPU."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from tests.fairseq_cli import tiny_translation_data

        return tiny_translation_data(tmp_path_factory.mktemp("gpu-data"))

    @pytest.fixture(scope="class")
    def text(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from tests.fairseq_cli import tiny_language_data

        return tiny_language_data(tmp_path_factory.mktemp("gpu-text"))

    def run(self, command: str, data: Path, *arguments: object) -> str:
        from tests.fairseq_cli import USER_DIR, run_program

        program = Path(sys.executable).parent / f"fairseq-{command}"
        words = [program, data, "--user-dir", USER_DIR, *arguments]
        return run_program(words, environment={"CUDA_VISIBLE_DEVICES": "0"}).check().output

    @pytest.mark.parametrize("precision", ["--fp16", "--bf16", "--memory-efficient-fp16", "--amp", "--cpu"])
    def test_trains(self, precision: str, data: Path, tmp_path: Path) -> None:
        """In each precision; on the CPU of a machine with a GPU; and resumed in half precision, then generating."""
        from tests.fairseq_cli import FEW_UPDATES

        train = ["--arch", "mt_deepnorm_small", *SMALL, *FEW_UPDATES, "--share-all-embeddings", precision]
        self.run("train", data, *train, "--save-dir", tmp_path, "--max-update", "20")
        if precision != "--fp16":
            return
        resumed = self.run("train", data, *train, "--save-dir", tmp_path, "--max-update", "30")
        assert "@ 20 updates" in resumed
        checkpoint = tmp_path / "checkpoint_last.pt"
        output = self.run("generate", data, "--path", checkpoint, "--batch-size", "8", "--beam", "4", "--fp16")
        assert sum(line.startswith("H-") for line in output.splitlines()) == 21

    @pytest.mark.parametrize(
        ("arch", "precision"),
        [("gpt_deepnorm_small", "--fp16"), ("gpt_xpos_small", "--bf16"), ("bert_magneto_small", "--fp16")],
    )
    def test_language_models(self, arch: str, precision: str, text: Path, tmp_path: Path) -> None:
        from tests.fairseq_cli import FEW_UPDATES

        task = (
            ["--task", "masked_lm", "--criterion", "masked_lm"] if "bert" in arch else ["--task", "language_modeling"]
        )
        words = [*task, "--arch", arch, *FEW_UPDATES, "--tokens-per-sample", "32", precision, "--save-dir", tmp_path]
        self.run("train", text, *words, "--max-update", "20")
        checkpoint = tmp_path / "checkpoint_last.pt"
        if "bert" in arch:
            self.run("validate", text, "--task", "masked_lm", "--path", checkpoint, "--batch-size", "8", precision)
        else:
            flags = ["--path", checkpoint, "--tokens-per-sample", "32", "--context-window", "8", precision]
            assert "Evaluated 136 tokens" in self.run("eval-lm", text, *flags)

    def test_linear_cross_entropy(self, text: Path, tmp_path: Path) -> None:
        """Trains in half precision to the loss of the stock criterion."""
        from tests.fairseq_cli import FEW_UPDATES

        losses = []
        for criterion in ("cross_entropy", "linear_cross_entropy"):
            words = ["--task", "language_modeling", "--arch", "gpt_magneto_small", *FEW_UPDATES, "--fp16"]
            words += ["--tokens-per-sample", "32", "--criterion", criterion, "--dropout", "0", "--lr", "1e-3"]
            output = self.run("train", text, *words, "--save-dir", tmp_path / criterion)
            losses.append(float(re.findall(r"\| valid \| .*?loss ([\d.]+)", output)[-1]))
        assert losses[1] == pytest.approx(losses[0], abs=0.02)


def retention_inputs(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values of norm about 1, rounded to the dtype."""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((2, length, 4, 64), (2, length, 4, 64), (2, length, 4, 128))
    return [(torch.randn(*s, generator=generator, device="cuda") / s[-1] ** 0.5).to(dtype) for s in shapes]


def retention_and_gradients(form: Any, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    output, state = form(*leaves, log_decays(4, "powers", torch.device("cuda")))
    weights = torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output).to(output.dtype)
    (output * weights).sum().backward()
    return [output.detach(), state.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("length", [63, 500, 2500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunkwise_retention(length: int, dtype: torch.dtype) -> None:
    """Output, state and gradients against the parallel form in float64."""
    tensors = retention_inputs(length, dtype)
    expected = retention_and_gradients(parallel_retention, [x.double() for x in tensors])
    found = retention_and_gradients(partial(chunkwise_retention, chunk_size=128), tensors)
    for actual, exact in zip(found, expected, strict=True):
        assert_close(actual.double(), exact, str(actual.dtype).removeprefix("torch."))


@pytest.mark.parametrize("length", [63, 500, 2500])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_retention_of_flash_linear_attention(length: int, dtype: torch.dtype) -> None:
    """The same of fla's kernel, by relative error in the mean, which it states as 0.005 for itself."""
    pytest.importorskip("fla")
    tensors = retention_inputs(length, dtype)
    expected = retention_and_gradients(parallel_retention, [x.double() for x in tensors])
    for actual, exact in zip(retention_and_gradients(fla_retention, tensors), expected, strict=True):
        error = (actual.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < RELATIVE_ERROR_OF_KERNELS
