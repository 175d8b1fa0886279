"""Low-rank adapters: they change nothing at first, are alone trained, and merge into the weights."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.core.families import FAMILIES, main_output
from tests.core.models import decoder, tokens
from tests.helpers import assert_close
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.lora import LoRA, LoRALinear, add_adapters, is_adapter, merged

ALL = LoRA(rank=2, alpha=3.0, targets=("all",))
ADAPTED = [name for name in FAMILIES if name != "bitnet"]
"""Families whose linear layers are plain."""


def train_adapters(model: nn.Module) -> None:
    """Move the adapters away from their initial values."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.mark.parametrize("family", ADAPTED)
def test_adapters_of_every_family(family: str) -> None:
    built, inputs = FAMILIES[family].build, FAMILIES[family].inputs
    model, plain = built().double(), built().double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    names = add_adapters(model, ALL)
    before = main_output(plain(*inputs))
    assert_close(main_output(model(*inputs)), before, "float64")
    train_adapters(model)
    output = main_output(model(*inputs))
    assert (output - before).abs().max() > 1e-4
    output.square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"{name}.{part}" for name in names for part in ("lora_A", "lora_B")}
    plain.load_state_dict(merged(model.state_dict(), ALL.scale))
    assert_close(main_output(plain(*inputs)), output, "float64")


def test_targets() -> None:
    model: Any = decoder()
    names = add_adapters(model, LoRA(rank=2, alpha=2.0, targets=("k_proj", "fc2")))
    assert names[:2] == ["layers.0.self_attn.k_proj", "layers.0.ffn.fc2"] and len(names) == 6
    assert isinstance(model.layers[0].ffn.fc2, LoRALinear)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 3 * 2 * (24 + 24 + 32 + 24)


def test_weights_without_adapters_leave_them_as_they_are() -> None:
    model, plain = decoder(), decoder()
    add_adapters(model, ALL)
    train_adapters(model)
    adapters = {name: value.clone() for name, value in model.state_dict().items() if is_adapter(name)}
    model.load_state_dict(plain.state_dict())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in adapters.items())


def test_dropout_is_of_adapters_alone() -> None:
    model = decoder()
    add_adapters(model, LoRA(rank=2, alpha=2.0, dropout=0.5, targets=("all",)))
    text = tokens(2, 7)
    before = model(text)[0]
    assert torch.equal(model.train()(text)[0], before)
    train_adapters(model)
    assert not torch.equal(model(text)[0], model(text)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0, "alpha": 1.0}, r"lora_rank \(0\) must be at least 1"),
        ({"rank": 1, "alpha": 1.0, "dropout": 1.0}, r"lora_dropout \(1.0\) must be at least 0 and below 1"),
        (
            {"rank": 1, "alpha": 1.0, "targets": ("q_pro",)},
            "lora_targets names 'q_pro', .*; give lora_targets='q_proj'",
        ),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoRA(**options)


def test_a_model_without_targets() -> None:
    message = r"lora_targets \(gate\) names no linear layer that this model has; give lora_targets='q_proj,"
    with pytest.raises(InputError, match=message):
        add_adapters(decoder(), LoRA(rank=1, alpha=1.0, targets=("gate",)))
