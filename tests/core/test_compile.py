"""compile=True changes speed alone."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import config as dynamo_options
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import _config as shape_options

from tests.core.mixtures import WIDTH, mixture
from tests.core.models import SIZES, VOCABULARY, encoder_decoder, randomize, tokens
from tests.expert_rows_on_cpu import keep_counts_on_device
from tests.helpers import assert_close
from torchscale_fairseq import Decoder, DecoderConfig, Encoder, EncoderConfig, RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.architectures import layer_sequence
from torchscale_fairseq.core.architectures.encoder_decoder import EncoderDecoder
from torchscale_fairseq.core.architectures.layer_sequence import ONE_REGION, PIECES, LayerSequence
from torchscale_fairseq.core.ops import retention_forms, xpos
from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.core.ops.masks import know_padding
from torchscale_fairseq.core.ops.positions import padding_of
from torchscale_fairseq.core.ops.retention import recurrent_retention
from torchscale_fairseq.core.ops.retention_packing import Results

RETNET: dict[str, Any] = {
    "decoder_embed_dim": 24,
    "decoder_value_embed_dim": 30,
    "decoder_retention_heads": 3,
    "decoder_ffn_embed_dim": 32,
    "decoder_layers": 1,
    "recurrent_chunk_size": 4,
}
OPTIONS = [
    {},
    {"deepnorm": True},
    {"xpos_rel_pos": True},
    {"rel_pos_buckets": 8, "max_rel_pos": 16},
    {"segment_length": [4, 8], "dilated_ratio": [1, 2]},
]


def decoders(layers: int = 1, **options: Any) -> tuple[Decoder, Decoder]:
    sizes: dict[str, Any] = {f"decoder_{k}": v for k, v in SIZES.items()} | {"decoder_layers": layers}
    config = DecoderConfig(vocab_size=VOCABULARY, **sizes, **options)
    plain = randomize(Decoder(config)).train()
    compiled = Decoder(dataclasses.replace(config, compile=True))
    compiled.load_state_dict(plain.state_dict())
    return plain, compiled


def compiled_regions(layers: nn.Module) -> int:
    return sum(module._compiled_call_impl is not None for module in layers.modules())


def same_values_and_gradients(plain: nn.Module, compiled: nn.Module, call: Callable[[nn.Module], torch.Tensor]) -> None:
    results = []
    for model in (plain, compiled):
        model.zero_grad()
        output = call(model)
        output.square().mean().backward()
        results.append((output, {n: p.grad for n, p in model.named_parameters()}))
    assert_close(results[1][0], results[0][0], "float32")
    for name, gradient in results[0][1].items():
        assert_close(results[1][1][name], gradient, "float32", name)


@pytest.fixture
def traced_whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers are traced in one piece, and run by Python instead of generated code, which takes a minute to make."""
    calls = [0]

    def run(graph: Any, inputs: Any) -> Any:
        calls[0] += 1
        return graph

    stock = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **o: stock(module, backend=run, fullgraph=True, **o))
    torch._dynamo.reset()
    return calls


def logits(model: nn.Module, text: torch.Tensor) -> torch.Tensor:
    return model(text)[0]


def packed_logits(model: nn.Module, starts: torch.Tensor) -> torch.Tensor:
    return model(tokens(*starts.shape), document_starts=starts)[0]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "subln"))
def test_decoder(options: dict[str, Any], traced_whole: list[int]) -> None:
    plain, compiled = decoders(**options)
    for shape in ((2, 9), (3, 12)):
        text = tokens(*shape)
        same_values_and_gradients(plain, compiled, partial(logits, text=text))
    assert 1 <= traced_whole[0] <= 4  # for one shape, then for any


def test_deep_decoder(traced_whole: list[int]) -> None:
    """Layers share the code of one: one graph for the first shape, and one for all others."""
    plain, compiled = decoders(ONE_REGION + 1)
    for graphs, shape in enumerate(((2, 9), (3, 12)), start=1):
        same_values_and_gradients(plain, compiled, partial(logits, text=tokens(*shape)))
        assert traced_whole[0] == graphs
    same_values_and_gradients(plain, compiled, partial(logits, text=tokens(4, 15)))
    assert traced_whole[0] == graphs


@pytest.mark.parametrize(
    ("layers", "drop_path_rate", "regions"),
    [(ONE_REGION, 0.0, 1), (ONE_REGION + 1, 0.0, ONE_REGION + 1), (ONE_REGION + 1, 0.1, 1)],
    ids=["shallow", "deep", "layers differ"],
)
def test_regions_of_deep_models(layers: int, drop_path_rate: float, regions: int) -> None:
    sizes: dict[str, Any] = {f"decoder_{k}": v for k, v in SIZES.items()} | {"decoder_layers": layers}
    config = DecoderConfig(vocab_size=VOCABULARY, compile=True, drop_path_rate=drop_path_rate, **sizes)
    assert compiled_regions(Decoder(config).layers) == regions


@pytest.mark.parametrize(
    ("options", "regions"),
    [({}, 1), ({"moe_freq": 1, "moe_expert_count": 2}, 3), ({"segment_length": [4], "dilated_ratio": [1]}, 3)],
    ids=["plain", "experts", "dilated"],
)
def test_regions(options: dict[str, Any], regions: int) -> None:
    """A decoder's layers are one, unless some of what they do stays outside of compiled code."""
    sizes: dict[str, Any] = {f"decoder_{k}": v for k, v in SIZES.items()} | {"decoder_layers": 3}
    layers = Decoder(DecoderConfig(vocab_size=VOCABULARY, compile=True, **sizes, **options)).layers
    assert compiled_regions(layers) == regions


@pytest.mark.parametrize(("moe_freq", "regions"), [(0, 1), (1, 3)], ids=["plain", "experts"])
def test_regions_of_an_encoder(moe_freq: int, regions: int) -> None:
    """The host starts the layers of an encoder at once, as it does those of a decoder."""
    sizes: dict[str, Any] = {f"encoder_{k}": v for k, v in SIZES.items()} | {"encoder_layers": 3}
    experts: dict[str, Any] = {"moe_freq": moe_freq, "moe_expert_count": 2} if moe_freq else {}
    layers = Encoder(EncoderConfig(vocab_size=VOCABULARY, compile=True, **sizes, **experts)).layers
    assert compiled_regions(layers) == regions


def test_encoder_with_padding(traced_whole: list[int]) -> None:
    config = EncoderConfig(vocab_size=VOCABULARY, **{f"encoder_{k}": v for k, v in SIZES.items()})
    plain = randomize(Encoder(config)).train()
    compiled = Encoder(dataclasses.replace(config, compile=True))
    compiled.load_state_dict(plain.state_dict())
    padding = torch.arange(9)[None] >= torch.tensor([[9], [4]])
    same_values_and_gradients(plain, compiled, lambda m: m(tokens(2, 9), padding)["encoder_out"])
    assert traced_whole[0] >= 1


def test_recomputed_layers(traced_whole: list[int]) -> None:
    plain, compiled = decoders(checkpoint_activations=True)
    same_values_and_gradients(plain, compiled, lambda m: m(tokens(2, 9))[0])
    assert traced_whole[0] >= 1


def test_decoding_leaves_compiled_layers_alone(traced_whole: list[int]) -> None:
    plain, compiled = decoders()
    text = tokens(2, 6)
    state: dict[str, Any] = {}
    steps = [compiled(text[:, :n], incremental_state=state)[0] for n in range(1, 7)]
    assert traced_whole[0] == 0
    assert_close(torch.cat(steps, 1), plain(text)[0], "float32")


def test_retention(traced_whole: list[int]) -> None:
    plain = randomize(RetNetDecoder(RetNetConfig(vocab_size=VOCABULARY, chunkwise_recurrent=True, **RETNET))).train()
    compiled = RetNetDecoder(dataclasses.replace(plain.config, compile=True))
    compiled.load_state_dict(plain.state_dict())
    same_values_and_gradients(plain, compiled, lambda m: m(tokens(2, 9))[0])
    assert traced_whole[0] >= 1


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="before torch 2.7 compiling looks like export")
@pytest.mark.parametrize(("at_work", "kernel"), [("_is_compiling_flag", True), ("_is_exporting_flag", False)])
def test_kernel_of_rotation(at_work: str, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile keeps it; an exported model runs where this package is not installed."""
    monkeypatch.setattr(xpos, "TRITON", True)
    monkeypatch.setattr(torch.compiler, at_work, True)
    with FakeTensorMode():
        x = torch.empty(2, 5, 3, 8, dtype=torch.bfloat16, device="cuda")
        table = torch.empty(1, 5, 1, 4, device="cuda")
        assert xpos._has_kernel(x, table, table) == kernel


@pytest.mark.parametrize("host_knows", [True, False])
def test_packed_retention_by_kernels(
    monkeypatch: pytest.MonkeyPatch, host_knows: bool, traced_whole: list[int]
) -> None:
    """Sequences are counted before compiled code begins, so that nothing interrupts it."""

    def kernels(*tensors: Any, need_state: bool) -> Results:
        *inputs, state, packing = tensors
        rows, length = inputs[0].shape[:2]
        first = torch.zeros(rows * length, dtype=torch.bool).index_fill(0, packing.offsets[:-1], True)
        assert packing.chunks.places.size(1) == 2 and not need_state
        return recurrent_retention(*inputs, document_starts=first.view(rows, length), state=state)[0], None

    monkeypatch.setattr(retention_forms, "_fla_refusal", lambda *_, **__: None)
    monkeypatch.setattr(retention_forms, "_chunk_kernels", kernels)
    config = RetNetConfig(vocab_size=VOCABULARY, retention_backend="torch", **(RETNET | {"decoder_layers": 2}))
    plain = randomize(RetNetDecoder(config)).train().double()
    compiled = RetNetDecoder(dataclasses.replace(plain.config, compile=True, retention_backend="fla")).double()
    compiled.load_state_dict(plain.state_dict())
    for begin in ([0, 3, 4], [0, 5], [0, 2, 3, 7]):
        starts = torch.zeros(2, 9, dtype=torch.bool)
        starts[0, begin] = starts[1, 2] = True
        if host_knows:
            note_documents(starts, Documents.of(starts))
        same_values_and_gradients(plain, compiled, partial(packed_logits, starts=starts))
    assert 1 <= traced_whole[0] <= 2  # for one number of documents, then for any


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 compiles what disabled code calls")
def test_experts_by_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host counts the rows of experts, other counts need no other compiled code."""
    graphs = [0]

    def run(graph: Any, inputs: Any) -> Any:
        graphs[0] += 1
        return graph

    stock = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: stock(module, backend=run))
    torch._dynamo.reset()
    plain, compiled = decoders(moe_freq=1, moe_expert_count=3)
    same_values_and_gradients(plain, compiled, partial(logits, text=tokens(2, 9)))
    written = graphs[0]
    for seed in range(3):
        text = torch.randint(4, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed))
        same_values_and_gradients(plain, compiled, partial(logits, text=text))
    assert graphs[0] == written


@pytest.mark.slow
def test_generated_code() -> None:
    torch._dynamo.reset()
    plain, compiled = decoders()
    same_values_and_gradients(plain, compiled, lambda m: m(tokens(2, 9))[0])


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (3, {}),
        (3, {"host_knows": True}),
        (SIZES["embed_dim"], {}),
        (SIZES["embed_dim"], {"host_knows": True, "apart": True}),
        (4, {"xpos": True}),  # as many sentences as tokens of the source
        (5, {"xpos": True, "apart": True}),  # and of the target
    ],
    ids=str,
)
def test_shapes_of_translation(
    rows: int, options: dict[str, bool], traced_whole: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled after two batches: one with padding of the source, one without. Layers share their code.

    Sizes of the first batch that are equal by chance, or equal to the width, change nothing.
    """
    if "apart" in options:
        monkeypatch.setattr(layer_sequence, "ONE_REGION", 0)
    xpos = "xpos" in options
    model = encoder_decoder(compile=True, encoder_layers=3, decoder_layers=3, xpos_rel_pos=xpos).train()
    for batch in range(12):
        translate(model, rows, batch, "host_knows" in options)
        assert traced_whole[0] <= 2 * min(batch + 1, 2)


def translate(model: EncoderDecoder, rows: int, batch: int, host_knows: bool = False) -> torch.Tensor:
    """Logits of a batch, whose shape its number decides, and gradients; every second batch has padding."""
    source, target = (tokens(rows + batch % 5, length, batch) for length in (4 + 3 * batch, 5 + batch))
    padding = torch.zeros_like(source, dtype=torch.bool)
    padding[0, :1] = batch % 2 == 1
    if host_knows:
        know_padding(padding, padding_of(padding))
    output = model.decoder(target, encoder_out=model.encoder(source, encoder_padding_mask=padding))[0]
    if torch.is_grad_enabled():
        output.square().mean().backward()
    return output


@pytest.mark.parametrize(("limit", "expected"), [(2, 2), (8, PIECES), (100, 100)])
def test_limits_that_callers_set_stand(limit: int, expected: int) -> None:
    with torch._dynamo.config.patch(cache_size_limit=limit):
        encoder_decoder(compile=True)
        assert torch._dynamo.config.cache_size_limit == expected


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 compiles what disabled code calls")
def test_layers_of_all_kinds_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On both sides, with and without experts, for one sentence and more, with and without padding, in training and
    validation."""
    torch._dynamo.reset()
    stock = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **o: stock(module, backend="eager", **o))
    shapes = [*((3, batch) for batch in range(4)), (1, 0), (1, 5)]
    with torch._dynamo.config.patch(cache_size_limit=8, fail_on_recompile_limit_hit=True):  # torch's own limit
        model = encoder_decoder(compile=True, encoder_layers=2, decoder_layers=2, moe_freq=2, moe_expert_count=3)
        for shape in shapes:
            translate(model.train(), *shape)
        with torch.no_grad():
            for shape in shapes:
                translate(model.eval(), *shape)


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_experts_are_compiled_for_batches_of_many_shapes(
    capacity_factor: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of rows stay on the device, so that a capacity decides about shapes."""
    keep_counts_on_device(partial(monkeypatch.setattr, raising=False))
    compiles = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **options: compiles(module, **options, backend="aot_eager")
    )
    plain, compiled = (mixture(4, capacity_factor=capacity_factor).train() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    # torch's own values
    with dynamo_options.patch(specialize_float=False), shape_options.patch(use_duck_shape=True):  # type: ignore[attr-defined]
        LayerSequence([compiled]).compile_layers(together=False, uneven=True)
        for length in (7, 9):
            x = torch.randn(3, length, WIDTH, dtype=torch.float64)
            same_values_and_gradients(plain, compiled, lambda layer: layer(x)[0])  # noqa: B023
