"""RetNet: decoding equals the full forward, padded and packed rows are what they are alone, no option is dead."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.core.decoding import mask_of
from tests.core.models import VOCABULARY, randomize, tokens
from tests.helpers import assert_close
from torchscale_fairseq import (
    EncoderDecoder,
    RetNetConfig,
    RetNetDecoder,
    RetNetEncoderDecoderConfig,
)
from torchscale_fairseq.core.layers.embedding import TextEmbedding
from torchscale_fairseq.core.ops import retention_forms
from torchscale_fairseq.core.ops.retention import recurrent_retention
from torchscale_fairseq.core.ops.retention_tables import log_decays
from torchscale_fairseq.core.saving import load_pretrained, write_folder

SIZES: dict[str, Any] = {
    "decoder_embed_dim": 24,
    "decoder_value_embed_dim": 30,
    "decoder_retention_heads": 3,
    "decoder_ffn_embed_dim": 32,
    "decoder_layers": 3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "chunkwise": {"chunkwise_recurrent": True, "recurrent_chunk_size": 4},
    "linspace": {"retention_decay": "linspace"},
    "compatible": {"torchscale_compatible": True},
    "compatible_chunkwise": {"torchscale_compatible": True, "chunkwise_recurrent": True, "recurrent_chunk_size": 5},
    "deepnorm": {"torchscale_compatible": True, "deepnorm": True, "decoder_normalize_before": False},
    "postnorm": {"decoder_normalize_before": False, "layernorm_embedding": True, "no_scale_embedding": False},
    "shared": {"share_decoder_input_output_embed": True, "activation_fn": "swish"},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def retnet(**options: Any) -> RetNetDecoder:
    """In float64: a norm that cancels most of what it is given amplifies float32's rounding beyond 1e-5."""
    config = RetNetConfig(vocab_size=VOCABULARY, **{**SIZES, **options})
    return randomize(RetNetDecoder(config, TextEmbedding(VOCABULARY, config.decoder_embed_dim, 1))).double()


def translator(**options: Any) -> EncoderDecoder:
    encoder: dict[str, Any] = {
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 24,
        "encoder_attention_heads": 2,
        "encoder_layers": 2,
    }
    heads: dict[str, Any] = {"decoder_attention_heads": 4}
    config = RetNetEncoderDecoderConfig(vocab_size=VOCABULARY, **encoder, **heads, **{**SIZES, **options})
    return randomize(EncoderDecoder(config)).double()


def stepped(model: nn.Module, target: Tensor, first: int, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Logits of a prompt of ``first`` tokens, then of pieces of 1 and 2 tokens."""
    state: dict[str, Any] = {}
    outputs, end = [], 0
    while end < target.size(1):
        end = first if end == 0 else min(end + 1 + end % 2, target.size(1))
        part = None if mask is None else mask[:, :end]
        outputs.append(model(target[:, :end], state, self_attn_padding_mask=part, **options)[0])
    return torch.cat(outputs, 1)


@every_variant
@pytest.mark.parametrize("first", [1, 7])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_steps_match_full_forward(variant: str, first: int, padding: str) -> None:
    model, target = retnet(**VARIANTS[variant]), tokens(3, 13)
    mask = None if padding == "none" else mask_of([13, 4, 9], 13, padding)
    full, _ = model(target, self_attn_padding_mask=mask)
    real = torch.ones_like(target, dtype=torch.bool) if mask is None else ~mask
    assert full.isfinite().all()
    assert_close(stepped(model, target, first, mask)[real], full[real], "float64")


@pytest.mark.parametrize("compatible", [False, True])
@torch.no_grad()
def test_steps_match_full_forward_in_float32(compatible: bool) -> None:
    """With the weights that training begins with."""
    torch.manual_seed(0)
    config = RetNetConfig(vocab_size=VOCABULARY, torchscale_compatible=compatible, **SIZES)
    model = RetNetDecoder(config, TextEmbedding(VOCABULARY, config.decoder_embed_dim, 1)).eval()
    target = tokens(2, 500)
    full, _ = model(target)
    assert_close(stepped(model, target[:, :400], 300), full[:, :400], "float32")


@every_variant
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_their_unpadded_selves(variant: str, side: str) -> None:
    model, lengths, target = retnet(**VARIANTS[variant]), [12, 5, 8], tokens(3, 12)
    mask = mask_of(lengths, 12, side)
    padded, _ = model(target, self_attn_padding_mask=mask)
    for row, length in enumerate(lengths):
        alone, _ = model(target[row, ~mask[row]][None])
        assert_close(padded[row, ~mask[row]], alone[0], "float64", f"row of {length}")


@every_variant
@torch.no_grad()
def test_packed_documents_equal_their_selves(variant: str) -> None:
    model, target, lengths = retnet(**VARIANTS[variant]), tokens(1, 16), [3, 6, 1, 6]
    starts = torch.zeros(1, 16, dtype=torch.bool)
    starts[0, torch.tensor([0, *lengths]).cumsum(0)[:-1]] = True
    packed, _ = model(target, document_starts=starts)
    alone = [model(document)[0] for document in target.split(lengths, 1)]
    assert_close(packed, torch.cat(alone, 1), "float64")
    state: dict[str, Any] = {}
    pieces = [model(target[:, :n], state, document_starts=starts[:, :n])[0] for n in (2, 11, 12, 16)]
    assert_close(torch.cat(pieces, 1), packed, "float64", "continued")


@every_variant
@torch.no_grad()
def test_prompts_of_different_lengths_continue(variant: str) -> None:
    """Right-padded prompts, then new tokens: padding stands inside the rows."""
    model, lengths = retnet(**VARIANTS[variant]), [7, 3, 5]
    prompt, new = tokens(3, 7), tokens(3, 4, seed=1)
    state: dict[str, Any] = {}
    model(prompt, state, self_attn_padding_mask=mask_of(lengths, 7, "right"))
    steps = [model(torch.cat((prompt, new[:, :n]), 1), state)[0] for n in range(1, 5)]
    for row, length in enumerate(lengths):
        alone, _ = model(torch.cat((prompt[row, :length], new[row]))[None])
        assert_close(torch.cat(steps, 1)[row], alone[0, length:], "float64", f"prompt of {length}")


@every_variant
@torch.no_grad()
def test_beams_move(variant: str) -> None:
    model, mask = retnet(**VARIANTS[variant]), mask_of([6, 4, 6], 6, "left")
    target = tokens(3, 6)
    state: dict[str, Any] = {}
    model(target, state, self_attn_padding_mask=mask)
    for step, move in enumerate([[0, 0, 1, 1, 2, 2], [1, 0, 2, 2, 5, 4], [0, 3, 3], [2, 1, 1, 0]]):
        order = torch.tensor(move)
        model.reorder_incremental_state(state, order)
        target = torch.cat((target[order], tokens(len(order), 1, seed=step)), 1)
        mask = torch.cat((mask[order], torch.zeros(len(order), 1, dtype=torch.bool)), 1)
        logits, _ = model(target, state, self_attn_padding_mask=mask)
        full, _ = model(target, self_attn_padding_mask=mask)
        assert_close(logits[:, -1], full[:, -1], "float64", f"move {step}")


@torch.no_grad()
def test_one_sentence_becomes_many_beams() -> None:
    model, target = retnet(), tokens(1, 5)
    state: dict[str, Any] = {}
    model(target, state)
    order = torch.zeros(4, dtype=torch.long)
    model.reorder_incremental_state(state, order)
    target = torch.cat((target[order], tokens(4, 1)), 1)
    assert_close(model(target, state)[0], model(target)[0][:, -1:], "float64")


@torch.no_grad()
def test_state_has_constant_size() -> None:
    def size(state: dict) -> int:
        def numbers(x: Any) -> int:
            if isinstance(x, Tensor):
                return x.numel()
            if isinstance(x, (list, tuple)):
                return sum(map(numbers, x))
            return sum(map(numbers, vars(x).values())) if hasattr(x, "__dict__") else 0

        return numbers(state["decoding_state"])

    model, target = retnet(), tokens(2, 90)
    mask, sizes = mask_of([90, 50], 90, "left"), []
    for length in (60, 90):
        state: dict[str, Any] = {}
        model(target[:, :30], state, self_attn_padding_mask=mask[:, :30])
        model(target[:, :length], state, self_attn_padding_mask=mask[:, :length])
        sizes.append(size(state))
    assert sizes[0] == sizes[1] == 3 * 2 * 3 * 8 * 10 + 2


@pytest.mark.parametrize("compatible", [False, True])
def test_forms_agree_in_the_whole_model(compatible: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients in float64, through each form, with padding and documents."""
    target, mask = tokens(2, 21), mask_of([21, 15], 21, "left")
    starts = torch.zeros(2, 21, dtype=torch.bool)
    starts[:, 12] = True
    results = []
    for form in ("parallel", "chunkwise", "recurrent"):
        model = retnet(
            chunkwise_recurrent=form == "chunkwise", recurrent_chunk_size=4, torchscale_compatible=compatible
        )
        if form == "recurrent":
            monkeypatch.setattr(retention_forms, "parallel_retention", recurrent_retention)
        logits, _ = model(target, self_attn_padding_mask=mask, document_starts=starts)
        logits[~mask].square().mean().backward()
        results.append([logits[~mask].detach(), *(p.grad for p in model.parameters())])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_close(actual, expected, "float64")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@torch.no_grad()
def test_lower_precision_keeps_positions(dtype: torch.dtype) -> None:
    """Far down a sequence a model in lower precision departs from float64 no more than at its beginning."""
    model, target = retnet(decoder_layers=1), tokens(1, 3000)
    exact, _ = model(target)
    rounded, _ = copy.deepcopy(model).to(dtype)(target)
    assert rounded.dtype == dtype
    error = (rounded.double() - exact).square().mean(-1).sqrt()[0] / exact.square().mean().sqrt()
    assert error[-500:].mean() < 1.5 * error[:500].mean() < 0.05


@torch.no_grad()
def test_translation_follows_beams() -> None:
    """Cross-attention and retention: steps, beams that move, a sentence that ends."""
    model = translator()
    encoder, decoder = model.encoder, model.decoder
    source_mask = mask_of([9, 4, 6], 9, "left")
    encoder_out = encoder(tokens(3, 9), source_mask)
    target, rows = tokens(6, 1, seed=2), torch.arange(3).repeat_interleave(2)
    state: dict[str, Any] = {}
    for step, move in enumerate([None, [1, 0, 2, 2, 5, 4], [0, 1, 4, 5], [1, 1, 2, 3]]):
        if move is not None:
            order = torch.tensor(move)
            decoder.reorder_incremental_state(state, order)
            target, rows = torch.cat((target[order], tokens(len(order), 1, seed=step)), 1), rows[order]
        logits, _ = decoder(target, state, encoder_out=encoder_out)
        own = {name: encoder_out[name][rows] for name in ("encoder_out", "encoder_padding_mask")}
        full, _ = decoder(target, encoder_out=own)
        assert_close(logits[:, -1], full[:, -1], "float64", f"step {step}")
        without, _ = decoder(target)
        assert (without - full).abs().max() > 0.01, "the encoder matters"


@torch.no_grad()
def test_padding_of_the_source_is_not_attended_to() -> None:
    model = translator()
    source, target, mask = tokens(2, 7), tokens(2, 5, seed=1), mask_of([7, 4], 7, "right")
    padded, _ = model(source, target, encoder_padding_mask=mask)
    alone, _ = model(source[1:, :4], target[1:])
    assert_close(padded[1:], alone, "float64")


@pytest.mark.parametrize(("compatible", "last"), [(False, 10000**-0.75), (True, 1e-4)])
def test_angles_of_the_paper_and_of_the_official_code(compatible: bool, last: float) -> None:
    model = retnet(torchscale_compatible=compatible)
    tables = model._retention_inputs(torch.zeros(1, 2, 24).double(), None, None, None).tables
    angle = torch.atan2(tables.key[1], tables.key[0])[0, 1, 0, -1]
    assert angle.item() == pytest.approx(last)


@torch.no_grad()
def test_saved_models_load(tmp_path: Path) -> None:
    for name, model, arguments in (
        ("language", retnet(retention_decay="linspace"), (tokens(2, 5),)),
        ("translation", translator(), (tokens(2, 5), tokens(2, 6, seed=1))),
    ):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, model.config, model.state_dict())
        assert torch.equal(load_pretrained(tmp_path / name)(*arguments)[0], model(*arguments)[0])


def test_checkpointing_and_stochastic_depth_train() -> None:
    plain, frugal = (retnet(checkpoint_activations=on, drop_path_rate=0.5, dropout=0.1).train() for on in (False, True))
    gradients = []
    for model in (plain, frugal):
        torch.manual_seed(0)
        model(tokens(2, 9))[0].sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, "float64")


def test_initial_values() -> None:
    """Retention has the gains of the authors' code; feed-forward networks Xavier's."""
    torch.manual_seed(0)
    model: Any = RetNetDecoder(RetNetConfig(vocab_size=50, decoder_layers=1))
    for name, gain in {"q_proj": 2**-2.5, "g_proj": 2**-2.5, "out_proj": 0.5}.items():
        weight = model.layers[0].retention.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(gain * (2 / sum(weight.shape)) ** 0.5, rel=0.03)
    fc1 = model.layers[0].ffn.fc1.weight
    assert fc1.std().item() == pytest.approx((2 / sum(fc1.shape)) ** 0.5, rel=0.03)


def test_parameter_names_are_torchscales() -> None:
    names = {n for n, _ in retnet(decoder_layers=1, share_decoder_input_output_embed=False).named_parameters()}
    parts = [f"retention.{x}_proj.weight" for x in "qkvg"] + ["retention.out_proj.weight"]
    parts += ["retention_layer_norm.weight", "final_layer_norm.weight"]
    parts += ["ffn.fc1.weight", "ffn.fc2.weight", "ffn.gate.weight"]
    whole = {"embed_tokens.weight", "layer_norm.weight", "output_projection.weight"}
    assert names == {f"layers.0.{part}" for part in parts} | whole


def test_official_constants_must_be_ours() -> None:
    """Angles of rotation and decays that official state dicts hold are not ignored where they differ."""
    model = retnet(torchscale_compatible=True)
    official = {
        **model.state_dict(),
        "retnet_rel_pos.angle": torch.zeros(8),
        "retnet_rel_pos.decay": log_decays(3, "powers").half(),
    }
    model.load_state_dict(dict(official))
    with pytest.raises(ValueError, match=r"rotates by other angles.*torchscale_compatible=True"):
        retnet().load_state_dict(dict(official))
    with pytest.raises(ValueError, match="other decays than retention_decay=linspace"):
        retnet(torchscale_compatible=True, retention_decay="linspace").load_state_dict(dict(official))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"decoder_attention_heads": 4}, TypeError, "no option decoder_attention_heads; did you mean"),
        (
            {"decoder_embed_dim": 100},
            ValueError,
            r"decoder_embed_dim \(100\) must be divisible by decoder_retention_heads \(3\); "
            r"give decoder_retention_heads=2",
        ),
        (
            {"decoder_value_embed_dim": 1000},
            ValueError,
            r"decoder_value_embed_dim \(1000\) .* decoder_value_embed_dim=1002",
        ),
        ({"decoder_embed_dim": 9, "decoder_value_embed_dim": 9}, ValueError, r"\(9 / 3 = 3\) must be even"),
        ({"recurrent_chunk_size": 0}, ValueError, r"recurrent_chunk_size \(0\) must be at least 1"),
        ({"retention_decay": "eq8"}, ValueError, r"retention_decay \('eq8'\) must be one of powers, linspace"),
        (
            {"subln": True},
            ValueError,
            r"subln has no place in a decoder with retention.*add torchscale_compatible=True",
        ),
        ({"deepnorm": True}, ValueError, "deepnorm has no place"),
        ({"dropout": 1.0}, ValueError, r"dropout \(1.0\)"),
        ({"max_target_positions": 0}, ValueError, "max_target_positions"),
        ({"vocab_size": 0}, ValueError, r"vocab_size \(0\) must be positive"),
    ],
)
def test_errors(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RetNetConfig(**kwargs)


@torch.no_grad()
def test_what_callers_forget() -> None:
    with pytest.raises(ValueError, match="was built without embed_tokens"):
        RetNetDecoder(RetNetConfig(**SIZES))(tokens(1, 3))
    model = retnet()
    state: dict[str, Any] = {}
    model(tokens(1, 3), state)
    with pytest.raises(ValueError, match="no token that incremental_state has not seen"):
        model(tokens(1, 3), state)


def test_config_copies_and_pickles() -> None:
    for made in (
        RetNetConfig(vocab_size=10, dropout=0.25),
        RetNetEncoderDecoderConfig(decoder_retention_heads=4, decoder_value_embed_dim=1024),
    ):
        assert copy.deepcopy(made) == made == pickle.loads(pickle.dumps(made))


def test_every_option_is_read() -> None:
    """Building, training and decoding a model reads each field."""
    read: set[str] = set()

    class Recording(RetNetConfig):
        def __getattribute__(self, name: str) -> Any:
            if object.__getattribute__(self, "__dict__").get("_built"):
                read.add(name)
            return super().__getattribute__(name)

    experts: dict[str, Any] = {"moe_freq": 2, "moe_expert_count": 4, "use_xmoe": True}
    config = Recording(vocab_size=40, bitnet="b1.58", **experts, **SIZES)
    object.__setattr__(config, "_built", True)
    RetNetDecoder(config)(tokens(2, 5))[0].sum().backward()
    dead = {f.name for f in dataclasses.fields(RetNetConfig)} - read
    assert dead <= {"subln", "max_target_positions"}, dead  # refused unless compatible; of fairseq's tasks


@pytest.mark.parametrize("changed", [{}, {"moe_dropless": True, "use_xmoe": True}], ids=str)
def test_experts_decode_as_they_read(changed: dict[str, Any]) -> None:
    """Gated ones, step by step after a prompt, in a left-padded batch."""
    config = RetNetConfig(vocab_size=40, moe_freq=2, moe_expert_count=4, **changed, **SIZES)
    model: Any = RetNetDecoder(config).double().eval()
    assert [layer.moe_layer is not None for layer in model.layers][:2] == [False, True]
    assert model.layers[1].moe_layer.experts.gate is not None
    text = tokens(2, 9)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, :3] = True
    full, extra = model(text, self_attn_padding_mask=padding)
    assert extra["l_aux"][1] is not None
    state: dict[Any, Any] = {}
    steps = [
        model(text[:, :n], self_attn_padding_mask=padding[:, :n], incremental_state=state)[0] for n in range(4, 10)
    ]
    assert_close(torch.cat(steps, 1)[~padding], full[~padding], "float64")
