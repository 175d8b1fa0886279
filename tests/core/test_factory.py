"""Layers come from specs: nothing in a spec is unused, and a model may bring a factory of its own."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.core.models import SIZES, VOCABULARY, tokens
from torchscale_fairseq import Decoder, DecoderConfig, Encoder, EncoderConfig, RetNetConfig
from torchscale_fairseq.core.architectures import spec
from torchscale_fairseq.core.architectures.factory import LayerFactory
from torchscale_fairseq.core.architectures.spec import LayerSpec

SPECS = (
    spec.LayerSpec,
    spec.AttentionSpec,
    spec.RetentionSpec,
    spec.FeedForwardSpec,
    spec.ExpertSpec,
    spec.PositionSpec,
    spec.MultiwaySpec,
)


def _fields(kind: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set(kind._fields)


def _attributes_read() -> set[str]:
    """In the modules that build and run layers, the specifications' own aside."""
    own = Path(spec.__file__)
    trees = [ast.parse(path.read_text()) for path in own.parent.glob("*.py") if path != own]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("kind", SPECS)
def test_every_field_is_read(kind: Any) -> None:
    assert not _fields(kind) - _attributes_read()


def test_retnet_has_no_options_of_attention() -> None:
    options = ("decoder_attention_heads", "decoder_learned_pos", "multiway", "gated_ffn", "norm", "uses_subln")
    assert not [name for name in options if hasattr(RetNetConfig(), name)]


class Doubled(nn.Module):
    """A feed-forward network of its own kind."""

    def forward(self, x: Any) -> Any:
        """Twice x."""
        return 2 * x


class DoublingFactory(LayerFactory):
    """Puts ``Doubled`` in the place of feed-forward networks."""

    def feed_forward(self) -> nn.Module:
        """A ``Doubled``."""
        return Doubled()


@pytest.mark.parametrize(("base", "config"), [(Encoder, EncoderConfig), (Decoder, DecoderConfig)])
def test_a_model_with_another_factory(base: Any, config: Any) -> None:
    class Model(base):
        def layer_factory(self, spec: LayerSpec) -> LayerFactory:
            return DoublingFactory(spec)

        def build_output_projection(self, tied_to: nn.Embedding | None) -> nn.Module:
            return nn.Linear(self.spec.width, 7)

    side = "encoder" if base is Encoder else "decoder"
    model = Model(config(vocab_size=VOCABULARY, **{f"{side}_{name}": value for name, value in SIZES.items()}))
    assert all(isinstance(layer.ffn, Doubled) for layer in model.layers)
    output = model(tokens(2, 5))
    logits = output["encoder_out"] if base is Encoder else output[0]
    assert logits.shape == (2, 5, 7)
