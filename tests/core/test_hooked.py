"""Layers that a caller has hooked are called, where code would otherwise compute their outputs by other means."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.core.models import decoder, retnet, tokens
from tests.helpers import assert_close
from torchscale_fairseq import ViT, ViTConfig
from torchscale_fairseq.core.layers import bit_linear, feed_forward
from torchscale_fairseq.core.layers.attention import MultiheadAttention
from torchscale_fairseq.core.layers.bit_linear import BitKind, PackedBitLinear, at_once
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.feed_forward import FeedForwardNetwork
from torchscale_fairseq.core.parallel.groups import ExpertSplit


def hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda _, __, output: 3 * output)


def replace_forward(layer: nn.Module) -> None:
    usual = layer.forward
    vars(layer)["forward"] = lambda *inputs: 3 * usual(*inputs)


CHANGES = pytest.mark.parametrize("change", [hook, replace_forward])


def refuse(*_: Any) -> Any:
    raise AssertionError("a layer was passed over")


@CHANGES
@pytest.mark.parametrize("name", ["fc1", "activation_dropout", "ffn_layernorm"])
def test_feed_forward_networks(name: str, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = FeedForwardNetwork(4, 8, inner_norm=nn.LayerNorm(8)), torch.randn(2, 4)
    change(network.get_submodule(name))
    expected = network(x)
    monkeypatch.setattr(feed_forward, "has_kernel", lambda *_: True)
    monkeypatch.setattr(feed_forward, "gelu_norm", refuse)
    assert torch.equal(network(x), expected)


class OnGpu(Tensor):
    is_cuda = True


@CHANGES
def test_compiled_attention(change: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = MultiheadAttention(4, 2), torch.randn(2, 3, 4)
    change(layer.k_proj)
    expected = layer(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(layer._heads(layer.k_proj(x)), layer._of_itself(x.as_subclass(OnGpu), None)[1])
    assert torch.equal(layer(x), expected)


class Quantized(OnGpu):
    """Can multiply, and nothing else."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.cat
        return super().__torch_function__(func, types, args, kwargs or {})


def test_quantized_weights_of_compiled_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Any = MultiheadAttention(4, 2)
    x = torch.randn(2, 3, 4)
    expected = layer._of_itself(x, None)
    for part in (layer.q_proj, layer.k_proj, layer.v_proj):
        part.weight = nn.Parameter(part.weight.data.as_subclass(Quantized))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for actual, right in zip(layer._of_itself(x.as_subclass(OnGpu), None), expected, strict=True):
        assert torch.equal(actual, right)


@CHANGES
@pytest.mark.parametrize("name", ["fc1", "dropout", "ffn_layernorm"])
def test_experts(name: str, change: Callable[..., None]) -> None:
    """Their kernel needs a GPU."""
    options: dict[str, Any] = {"gated": False, "activation_fn": "gelu", "dropout": 0.0, "norm": "layernorm"}
    layer = Experts(ExpertSplit(2), 4, 8, eps=1e-5, **options)
    assert layer._is_plain
    change(layer.get_submodule(name))
    assert not layer._is_plain


@CHANGES
def test_packed_layers(change: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at once, or one whose norm is hooked; a layer's own kernel serves it under its own hook."""
    kind = BitKind("b1.58", "faq", 1e-5, packed=True)
    first, second, x = (*(PackedBitLinear(8, 4, kind).eval() for _ in range(2)), torch.randn(2, 8))
    monkeypatch.setattr(bit_linear, "has_kernel", lambda *_: True)
    monkeypatch.setattr(bit_linear, "ternary_linear", lambda x, layers, *_: [x[:, :4]] * len(layers))
    assert at_once(x, first, second) is not None
    change(second)
    assert at_once(x, first, second) is None
    assert torch.equal(second(x), 3 * x[:, :4])
    change(first.norm)
    assert not torch.equal(first(x), x[:, :4])
    assert second.ternary(x) is not None
    change(second.weight)
    assert second.ternary(x) is None


@CHANGES
@pytest.mark.parametrize("name", ["", "patch_embed", "patch_embed.proj"])
def test_patches_of_images(name: str, change: Callable[..., None]) -> None:
    """They are put together, and the layers called with images."""
    sizes: dict[str, Any] = {"encoder_layers": 1, "encoder_embed_dim": 8, "encoder_attention_heads": 2}
    model = ViT(ViTConfig(img_size=4, patch_size=2, **sizes)).eval()
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    patches = pixels.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    change(model.get_submodule(name))
    assert_close(model.forward_patches(patches), model(pixels / 127.5 - 1), "float32")


@pytest.mark.parametrize("make", [decoder, retnet], ids=["attention", "retention"])
@torch.no_grad()
def test_layers_in_steps_of_decoding(make: Callable[[], Any]) -> None:
    """Their code is not the compiled one there, which is for whole sequences."""
    model, target, state = make(), tokens(3, 6), dict[Any, Any]()
    calls: list[nn.Module] = []
    model.layers.register_forward_hook(lambda layers, *_: calls.append(layers))
    model.layers[0].register_forward_hook(lambda _, __, output: (3 * output[0], output[1]))
    full, _ = model(target)
    for module in (model.layers, model.layers[0]):
        module._compiled_call_impl = refuse
    steps = [model(target[:, :end], incremental_state=state)[0][:, -1:] for end in range(1, 7)]
    assert_close(torch.cat(steps, 1), full, "float32")
    assert len(calls) == 7
