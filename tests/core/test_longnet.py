"""LongNet: models with dilated attention equal its definition, step by step too, and leak nothing."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.core.decoding import mask_of, stepped
from tests.core.models import LONGNETS, SIZES, VOCABULARY, decoder, encoder, options, randomize, tokens
from tests.helpers import assert_close
from torchscale_fairseq import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    LongNetDecoder,
    LongNetEncoder,
)
from torchscale_fairseq.core.layers import cache as caches
from torchscale_fairseq.core.layers import dilated_attention as layer
from torchscale_fairseq.core.layers.dilated_cache import DilatedCache
from torchscale_fairseq.core.ops.dilated_pattern import Branch, naive_dilated_attention

BRANCHES = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 5)), min_size=1, max_size=3)
PADDING = st.sampled_from(["none", "left", "right"])
every_pattern = pytest.mark.parametrize("pattern", LONGNETS)


def longnet(kind: type, branches: list[tuple[int, int]], **more: Any) -> Any:
    """One layer in float64 with random parameters."""
    segments, ratios = zip(*branches, strict=True)
    side = "decoder" if kind is LongNetDecoder else "encoder"
    sizes = options({"segment_length": segments, "dilated_ratio": ratios, **more}, side) | {f"{side}_layers": 1}
    config_class = DecoderConfig if kind is LongNetDecoder else EncoderConfig
    return randomize(kind(config_class(**sizes))).double()


def output_of(model: Decoder | Encoder, text: Tensor, mask: Tensor | None) -> Tensor:
    return model(text, mask)[0] if isinstance(model, Decoder) else model(text, mask)["encoder_out"]


def padded(padding: str, length: int) -> Tensor | None:
    return None if padding == "none" else mask_of([length, max(length // 3, 1), length - 1], length, padding)


def real(mask: Tensor | None, text: Tensor) -> Tensor:
    return torch.ones_like(text, dtype=torch.bool) if mask is None else ~mask


def by_definition(*arguments: Any, dropout: float, backend: str, torchscale_compatible: bool, **more: Any) -> Tensor:
    return naive_dilated_attention(*arguments, **more)


kinds = pytest.mark.parametrize("kind", [LongNetDecoder, LongNetEncoder])


@kinds
@settings(max_examples=12, deadline=None)
@given(branches=BRANCHES, length=st.integers(1, 20), heads=st.sampled_from([1, 2, 3, 4, 6]), padding=PADDING)
def test_models_equal_the_definition(
    kind: type, branches: list[tuple[int, int]], length: int, heads: int, padding: str
) -> None:
    model = longnet(kind, branches)
    model.layers[0].self_attn.num_heads = heads
    text, mask = tokens(3, length), padded(padding, length)
    with pytest.MonkeyPatch.context() as patch:
        actual = output_of(model, text, mask)[real(mask, text)]
        patch.setattr(layer, "dilated_attention", by_definition)
        expected = output_of(model, text, mask)[real(mask, text)]
    assert_close(actual, expected, "float64")
    weights = [p for p in model.parameters() if p.requires_grad]
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for found, wanted in zip(
        torch.autograd.grad((actual * direction).sum(), weights),
        torch.autograd.grad((expected * direction).sum(), weights),
        strict=True,
    ):
        assert_close(found, wanted, "float64", "gradient")


@settings(max_examples=25, deadline=None)
@given(
    branches=BRANCHES,
    length=st.integers(2, 30),
    heads=st.sampled_from([1, 2, 3, 4, 6]),
    first=st.integers(1, 12),
    padding=PADDING,
    compatible=st.booleans(),
)
@torch.no_grad()
def test_steps_equal_the_full_forward(
    branches: list[tuple[int, int]], length: int, heads: int, first: int, padding: str, compatible: bool
) -> None:
    """At every position, after a prompt of any length."""
    model = longnet(LongNetDecoder, branches)
    model.layers[0].self_attn.num_heads = heads
    model.layers[0].self_attn.torchscale_compatible = compatible
    text, mask = tokens(3, length), padded(padding, length)
    full, where = model(text, mask)[0], real(mask, text)
    assert_close(stepped(model, text, min(first, length), mask)[where], full[where], "float64")


@every_pattern
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_steps_equal_the_full_forward_in_deep_models(pattern: str, padding: str) -> None:
    model, text = decoder(**LONGNETS[pattern]), tokens(3, 26)
    mask = padded(padding, 26)
    full, where = model(text, mask)[0], real(mask, text)
    for first in (1, 8):
        assert_close(stepped(model, text, first, mask)[where], full[where], "float32")


@every_pattern
@torch.no_grad()
def test_beams_and_prompts_of_different_lengths(pattern: str) -> None:
    """Right-padded prompts go on, each from its own last token, while beam search moves the rows."""
    model, lengths = decoder(**LONGNETS[pattern]), [9, 3, 6]
    prompt, new = tokens(3, 9), tokens(3, 12, seed=1)
    rows = [prompt[row, :length] for row, length in enumerate(lengths)]
    state: dict[str, Any] = {}
    model(prompt, mask_of(lengths, 9, "right"), incremental_state=state)
    text = prompt
    for step in range(12):
        order = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 1, 2]][step % 3])
        if step:
            model.reorder_incremental_state(state, order)
            rows, text = [rows[i] for i in order.tolist()], text[order]
        rows = [torch.cat((row, new[i, step : step + 1])) for i, row in enumerate(rows)]
        text = torch.cat((text, new[:, step : step + 1]), 1)
        logits, _ = model(text, incremental_state=state)
        for i, row in enumerate(rows):
            assert_close(logits[i, -1], model(row[None])[0][0, -1], "float32", f"row {i} in step {step}")


@every_pattern
@torch.no_grad()
def test_padding_among_new_tokens(pattern: str) -> None:
    """A row may rest for some steps, before its first token too."""
    model, text = decoder(**LONGNETS[pattern]), tokens(2, 16)
    state: dict[str, Any] = {}
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[1, :6] = mask[1, 9:12] = True
    for n in (4, *range(5, 17)):
        logits, _ = model(text[:, :n], mask[:, :n], incremental_state=state)
        for row in range(2):
            if not mask[row, n - 1]:
                own = text[row, :n][~mask[row, :n]][None]
                assert_close(logits[row, -1], model(own)[0][0, -1], "float32", f"row {row} of {n}")


@torch.no_grad()
def test_xpos_moves_its_centre_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_XPOS_RECENTRE_DISTANCE", 3)
    model, text = decoder(**{**LONGNETS["xpos"], "xpos_scale_base": 8}), tokens(2, 40)
    assert_close(stepped(model, text, 5), model(text)[0], "float32")


BRANCHES_OF_CACHE = [Branch(4, 1), Branch(10, 3), Branch(32, 8)]


@pytest.mark.parametrize("prompt", [1, 7, 33])
def test_the_cache_holds_what_later_queries_see(prompt: int) -> None:
    """Keys are numbered by their position: of each branch there are those of the segment at hand."""
    heads, text = 5, torch.arange(90.0)[None, :, None, None].expand(2, 90, 5, 2)
    store = DilatedCache(BRANCHES_OF_CACHE, heads)
    store.fill(text[:, :prompt], text[:, :prompt], None)
    for seen in range(prompt, 90):
        position, everywhere = torch.full((2,), seen), torch.ones(2, dtype=torch.bool)
        visible = store.append(text[:, seen], text[:, seen], position, everywhere)
        key, value = store.content()
        assert torch.equal(key, value)
        for head in range(heads):
            expected = []
            for length, ratio in BRANCHES_OF_CACHE:
                first = seen // length * length
                kept = [n for n in range(first, seen + 1) if (n - first) % ratio == head % ratio]
                expected += kept if seen in kept else []
            assert key[0, visible[0, head], head, 0].tolist() == expected


def test_the_size_of_the_cache() -> None:
    """ceil(segment / ratio) per branch and head at most, fewer while the text is short, none more as it goes on."""
    whole = 4 + 4 + 4
    store, new = DilatedCache(BRANCHES_OF_CACHE, 3), torch.randn(2, 200, 3, 8)
    store.fill(new[:, :3], new[:, :3], None)
    assert store.slots == 3 + 1 + 1
    sizes = []
    for n in range(3, 200):
        store.append(new[:, n], new[:, n], torch.full((2,), n), torch.ones(2, dtype=torch.bool))
        key, value = store.content()
        assert key.shape == value.shape == (2, store.slots, 3, 8)
        sizes.append(store.slots)
    assert sizes == sorted(sizes) and set(sizes[29:]) == {whole}
    prompt = DilatedCache(BRANCHES_OF_CACHE, 3)
    prompt.fill(new, new, None)
    assert prompt.slots == whole


@torch.no_grad()
def test_a_long_text_is_decoded_from_a_small_cache() -> None:
    model = decoder(**LONGNETS["nested"])
    state: dict[str, Any] = {}
    text = tokens(1, 300)
    full = model(text)[0]
    model(text[:, :290], incremental_state=state)
    for n in range(291, 301):
        assert_close(model(text[:, :n], incremental_state=state)[0][:, -1], full[:, n - 1], "float32")
    key, _ = state["decoding_state"].layers[0].self_attn.content()
    assert key.size(1) == 4 + 4 + 4


@every_pattern
@torch.no_grad()
def test_nothing_leaks(pattern: str) -> None:
    """Neither from later tokens in a decoder, nor from padding in either."""
    text = tokens(3, 26)
    other = tokens(3, 26, seed=5)
    model = decoder(**LONGNETS[pattern])
    for n in (1, 9, 16, 25):
        changed = torch.cat((text[:, :n], other[:, n:]), 1)
        if "moe_freq" not in LONGNETS[pattern]:  # whose products are batched by expert, and round otherwise
            assert torch.equal(model(text)[0][:, :n], model(changed)[0][:, :n])
        assert_close(model(text)[0][:, :n], model(changed)[0][:, :n], "float32")
    sides = ["right"] if LONGNETS[pattern].get("torchscale_compatible") else ["left", "right"]
    for side in sides:
        mask = mask_of([26, 7, 15], 26, side)
        changed = torch.where(mask, other, text)
        for each in (model, encoder(**LONGNETS[pattern])):
            before, after = output_of(each, text, mask)[~mask], output_of(each, changed, mask)[~mask]
            assert_close(before, after, "float32", f"{type(each).__name__}, {side}")


@every_pattern
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_their_unpadded_selves(pattern: str, side: str) -> None:
    lengths, text = [19, 6, 11], tokens(3, 19)
    mask = mask_of(lengths, 19, side)
    models: list[Decoder | Encoder] = [decoder(**LONGNETS[pattern])]
    if side == "right" or not LONGNETS[pattern].get("torchscale_compatible"):  # whose encoder counts padding
        models.append(encoder(**LONGNETS[pattern]))
    for model in models:
        together = output_of(model, text, mask)
        for row in range(3):
            own = text[row, ~mask[row]][None]
            assert_close(together[row, ~mask[row]], output_of(model, own, None)[0], "float32", type(model).__name__)


@torch.no_grad()
def test_segments_decide_what_is_seen() -> None:
    """With one dense branch: nothing of other segments, all of one's own."""
    model = longnet(LongNetDecoder, [(8, 1)])
    text, changed = tokens(1, 24), tokens(1, 24)
    changed[:, 6] = 39 if text[0, 6] != 39 else 38
    seen = (model(text)[0] - model(changed)[0])[0].abs().amax(-1) > 0
    assert seen.tolist() == [6 <= n < 8 for n in range(24)]


@kinds
def test_dropout_of_attention_is_for_training(kind: type) -> None:
    model = longnet(kind, [(4, 1), (8, 2)], attention_dropout=0.5)
    same = longnet(kind, [(4, 1), (8, 2)])
    text = tokens(2, 12)
    assert torch.equal(output_of(model, text, None), output_of(same, text, None))
    model.train()
    first, second = (output_of(model, text, None) for _ in range(2))
    assert not torch.allclose(first, second)
    first.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.layers.parameters())


def test_recomputation_changes_nothing() -> None:
    plain, other = (decoder(**LONGNETS["xpos"], checkpoint_activations=on).train() for on in (False, True))
    for model in (plain, other):
        model(tokens(2, 14))[0].square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert_close(q[1].grad, p.grad, "float32", name)


def test_the_config_decides() -> None:
    """Encoder and Decoder build the same from the same config, and parameters have the names of dense models."""
    sizes: dict[str, Any] = {f"decoder_{k}": v for k, v in SIZES.items()}
    config = DecoderConfig(vocab_size=VOCABULARY, segment_length="[4]", dilated_ratio="[1]", **sizes)
    dense = Decoder(dataclasses.replace(config, segment_length=None, dilated_ratio=None))
    models = [LongNetDecoder(config), Decoder(config)]
    for model in models:
        model.load_state_dict(dense.state_dict())
        model.eval()
    text = tokens(1, 9)
    assert torch.equal(models[0](text)[0], models[1](text)[0])
    assert not torch.allclose(models[0](text)[0], dense.eval()(text)[0])
    for ratio in ("[1]", "[2]"):
        models[0] = LongNetDecoder(dataclasses.replace(config, dilated_ratio=ratio)).eval()
        models[0].load_state_dict(dense.state_dict())
        assert torch.equal(models[0](text)[0], models[1](text)[0]) == (ratio == "[1]")


def test_configs_as_torchscales_readme_has_them() -> None:
    """flash_attention, which TorchScale demands, needs neither a GPU nor a package."""
    more: dict[str, Any] = {"segment_length": "[2048,4096]", "dilated_ratio": "[1,2]", "flash_attention": True}
    decoder_sizes, encoder_sizes = ({f"{side}_{k}": v for k, v in SIZES.items()} for side in ("decoder", "encoder"))
    logits = LongNetDecoder(DecoderConfig(vocab_size=64000, **more, **decoder_sizes))(tokens(1, 9))[0]
    assert logits.shape == (1, 9, 64000)
    output = LongNetEncoder(EncoderConfig(vocab_size=64000, **more, **encoder_sizes))(tokens(1, 9))
    assert output["encoder_out"].shape == (1, 9, 64000)


@torch.no_grad()
def test_what_it_cannot_do() -> None:
    kinds: list[tuple[Any, Any]] = [(LongNetEncoder, EncoderConfig), (LongNetDecoder, DecoderConfig)]
    for kind, config in kinds:
        with pytest.raises(ValueError, match=f"{kind.__name__} needs segment_length and dilated_ratio in its config"):
            kind(config())
    model, text = encoder(**LONGNETS["nested"]), tokens(1, 9)
    with pytest.raises(ValueError, match="attn_mask has no place in dilated attention"):
        model(text, attn_mask=torch.ones(9, 9).triu(1))
    with pytest.raises(ValueError, match="incremental_state has no place in a bidirectional LongNet"):
        model(text, incremental_state=[{} for _ in model.layers])
    with pytest.raises(ValueError, match="padding between real tokens"):
        model(text, torch.arange(9)[None] == 4)
    with pytest.raises(ValueError, match="attention_backend=flash_attn"):
        decoder(**LONGNETS["nested"], attention_backend="flash_attn")(text)
