"""What the CPU tests prove, on a GPU and in its precisions."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.models import LONGNETS, VARIANTS, decoder, encoder_decoder, tokens
from tests.helpers import RELATIVE_ERROR_OF_KERNELS, assert_close, triple
from torchscale_fairseq import RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.ops.attention import AttentionMask
from torchscale_fairseq.core.ops.backend import log_choice
from torchscale_fairseq.core.ops.backends import CUDNN_FROM, attention
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
@pytest.mark.parametrize("length", [37, CUDNN_FROM])
def test_sdpa_matches_naive(length: int, dtype: torch.dtype, causal: bool, biased: bool, padding: str) -> None:
    """Values and gradients against float64, rows that see nothing included."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    exact = [random(3, length, 4, 64).to(dtype).double().requires_grad_() for _ in range(3)]
    low = [x.detach().to(dtype).requires_grad_() for x in exact]
    bias = random(1, 4, length, length).to(dtype) if biased else None
    index = torch.arange(length, device="cuda")
    lengths = torch.tensor([length, length // 3, length // 2], device="cuda")[:, None]
    left = index < length - lengths
    mask = {"none": None, "left": left, "right": index >= lengths}.get(padding, left)
    if padding == "everything":
        mask[1] = True
    upstream = random(3, length, 4, 64)
    results = []
    seen = AttentionMask(causal=causal, key_padding_mask=mask, bias=bias)
    for inputs, backend in ((exact, "naive"), (low, "sdpa")):
        output, _ = attention(*inputs, mask=seen, backend=backend)
        gradients = torch.autograd.grad((output * upstream.to(output.dtype)).sum(), inputs)
        results.append((output, *gradients))
    bound = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    for name, naive, fused in zip(("output", "query", "key", "value"), *results, strict=True):
        assert fused.isfinite().all(), name
        error = ((fused.double() - naive).norm() / naive.norm()).item()
        assert error < bound, f"{name}: relative RMS error {error}"
    if padding == "everything":
        assert not results[1][0][1].any()


@pytest.mark.parametrize("variant", [*VARIANTS, *LONGNETS])
@torch.no_grad()
def test_steps_match_full_forward(variant: str) -> None:
    model = decoder(**{**VARIANTS, **LONGNETS}[variant]).cuda()
    target = tokens(3, 20).cuda()
    mask = torch.arange(20, device="cuda") < torch.tensor([0, 7, 12], device="cuda")[:, None]
    full, _ = model(target, mask)
    state: dict[str, Any] = {}
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
    blocks = AttentionMask(causal=True, block=16)
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(2, 83, 4, 64, generator=generator, device="cuda", dtype=dtype) for _ in range(3)]
    exact, _ = attention(*(x.double() for x in inputs), mask=blocks, backend="naive")
    output, _ = attention(*inputs, mask=blocks)
    error = ((output.double() - exact).norm() / exact.norm()).item()
    assert error < {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_longnet_trains_in_every_precision(dtype: torch.dtype, dropout: float) -> None:
    """Without dropout: logits and gradients against float64 on the CPU. Dropout leaves evaluation alone."""
    options = {**LONGNETS["xpos"], "attention_dropout": dropout}
    exact, model = decoder(**options).double(), decoder(**options).to("cuda", dtype)
    text = tokens(2, 37)
    loose = 5 * RELATIVE_ERROR_OF_KERNELS[dtype] if dtype in RELATIVE_ERROR_OF_KERNELS else 1e-5
    for trains in (False, True):
        results = []
        for one, where in ((exact, "cpu"), (model, "cuda")):
            one.train(trains)
            one.zero_grad()
            logits, _ = one(text.to(where))
            logits.double().square().mean().backward()
            results.append(
                (logits.cpu().double(), torch.cat([p.grad.flatten() for p in one.parameters()]).cpu().double())
            )
        for expected, actual in zip(*results, strict=True):
            assert actual.isfinite().all()
            if not (trains and dropout):
                assert (actual - expected).norm() / expected.norm() < loose


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
        from tests.fairseq_cli import run_fairseq

        return run_fairseq(command, [data, *arguments], environment={"CUDA_VISIBLE_DEVICES": "0"}).check().output

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
            assert "Evaluated 136 tokens" in self.run("eval_lm", text, *flags)

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


class TestFlashLinearAttention:
    """retention_backend=fla, on heads of 64 and 128 channels, for which its kernels then are compiled once."""

    half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)

    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("fla")

    def assert_near(self, actual: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
        error = (actual.double() - exact.double()).square().mean().sqrt() / exact.double().square().mean().sqrt()
        assert error < RELATIVE_ERROR_OF_KERNELS[dtype]

    @half
    @pytest.mark.parametrize("length", [63, 500, 2500])
    def test_matches_the_parallel_form(self, length: int, dtype: torch.dtype) -> None:
        """Output, state and gradients, against float64."""
        tensors = retention_inputs(length, dtype)
        expected = retention_and_gradients(parallel_retention, [x.double() for x in tensors])
        for actual, exact in zip(retention_and_gradients(fla_retention, tensors), expected, strict=True):
            self.assert_near(actual, exact, dtype)

    @half
    @pytest.mark.parametrize("value_dim", [128, 127])
    def test_state_continues_a_sequence(self, value_dim: int, dtype: torch.dtype) -> None:
        """Values of odd width too; gradients reach the state."""
        query, key, value = retention_inputs(300, dtype)
        tensors, log_decay = [query, key, value[..., :value_dim]], log_decays(4, "powers", torch.device("cuda"))
        exact, final = parallel_retention(*(x.double() for x in tensors), log_decay)
        first, state = fla_retention(*triple(x[:, :130] for x in tensors), log_decay)
        state = state.detach().requires_grad_()
        second, last = fla_retention(*triple(x[:, 130:] for x in tensors), log_decay, state=state)
        self.assert_near(torch.cat((first, second), 1), exact, dtype)
        self.assert_near(last, final, dtype)
        leaf = state.detach().double().requires_grad_()
        again, _ = parallel_retention(*(x[:, 130:].double() for x in tensors), log_decay, state=leaf)
        (expected,) = torch.autograd.grad(again.sum(), leaf)
        self.assert_near(torch.autograd.grad(second.sum(), state)[0], expected, dtype)

    @half
    def test_long_sequences_stay_finite(self, dtype: torch.dtype) -> None:
        """At 16,384 tokens that are all alike the states of the slowest decay do not fit float16 as they are."""
        query, key, value = (torch.full((1, 16384, 4, d), 3.0, device="cuda", dtype=dtype) for d in (64, 64, 128))
        log_decay = torch.log1p(-(2.0 ** torch.tensor([-5, -8, -11, -14.0], device="cuda")))
        leaves = [x.requires_grad_() for x in (query / 1024, key, value)]
        output, state = fla_retention(*triple(leaves), log_decay)
        (output * 1e-3).sum().backward()
        assert all(x.isfinite().all() for x in (output, state, *(leaf.grad for leaf in leaves)))
        assert state.max() > torch.finfo(torch.float16).max

    @half
    def test_serves_a_model_unless_told(self, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
        """Logits and gradients of the whole model, a prompt with steps after it, and a padded batch."""
        log_choice.cache_clear()
        sizes: dict[str, Any] = {"decoder_embed_dim": 128, "decoder_value_embed_dim": 256, "decoder_ffn_embed_dim": 256}
        sizes |= {"decoder_layers": 2, "decoder_retention_heads": 2, "vocab_size": 40}
        torch.manual_seed(0)
        exact = RetNetDecoder(RetNetConfig(**sizes, retention_backend="torch")).double().cuda()
        model = RetNetDecoder(RetNetConfig(**sizes)).to("cuda", dtype)
        model.load_state_dict(exact.state_dict())
        text = tokens(2, 700).cuda()
        results = []
        with caplog.at_level("INFO"):
            for side in (exact, model):
                logits, _ = side(text)
                logits.double().square().mean().backward()
                results.append((logits, torch.cat([p.grad.flatten().double() for p in side.parameters()])))
        assert "retention backend: fla" in caplog.messages
        bound = {torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
        for expected, actual in zip(*results, strict=True):
            assert (actual - expected).norm() / expected.norm() < bound
        state: dict[str, Any] = {}
        with torch.no_grad():
            steps = [model(text[:, :n], incremental_state=state)[0] for n in (600, 699, 700)]
            padded, _ = model(text, self_attn_padding_mask=(torch.arange(700, device="cuda") < 9).expand(2, -1))
        assert (torch.cat(steps, 1) - results[0][0]).norm() / results[0][0].norm() < bound
        assert padded.isfinite().all()
