"""Slide encoders: positions, segments, names and what they compute."""

import numpy as np
import pytest
import torch

from tests.core.slide_encoders import SMALL, slides, small
from tests.helpers import assert_close
from torchscale_fairseq import LongNetEncoder, SlideClassifier, SlideEncoder, SlideEncoderConfig
from torchscale_fairseq.core.config.slides import segments_for
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.grid_positions import axis_positions, grid_positions


def test_the_released_model() -> None:
    """Names and shapes of Prov-GigaPath's weights."""
    with torch.device("meta"):
        model = SlideEncoder(SlideEncoderConfig())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    layer = "encoder.layers.11."
    attention = [f"{name}_proj.{kind}" for name in "kvq" for kind in ("weight", "bias")]
    attention += ["out_proj.weight", "out_proj.bias", "inner_attn_ln.weight", "inner_attn_ln.bias"]
    of_layer = {f"self_attn.{name}" for name in attention}
    for name in ("self_attn_layer_norm", "final_layer_norm", "ffn.fc1", "ffn.fc2", "ffn.ffn_layernorm"):
        of_layer |= {f"{name}.weight", f"{name}.bias"}
    assert {name.removeprefix(layer) for name in shapes if name.startswith(layer)} == of_layer
    assert {name for name in shapes if ".layers." not in name} == {
        "cls_token",
        *(
            f"{name}.{kind}"
            for name in ("patch_embed.proj", "norm", "encoder.layer_norm")
            for kind in ("weight", "bias")
        ),
    }
    assert shapes["patch_embed.proj.weight"] == (768, 1536) and shapes["cls_token"] == (1, 1, 768)
    assert shapes[f"{layer}ffn.fc1.weight"] == (3072, 768) and model.norm.eps == 1e-6


def test_segments_are_those_of_the_released_model() -> None:
    assert SlideEncoderConfig().segment_lengths == (1024, 5792, 32768, 185363, 1048576)
    for largest, tile in ((262144, 256), (131072, 224), (16384, 256), (8192, 256)):
        top = int(np.log2((largest / tile) ** 2))
        expected = np.power(2, np.linspace(np.log2(1024), top, 5)).astype(int).tolist()
        assert list(segments_for(largest, tile)) == expected


def test_positions_by_their_definition() -> None:
    """The vector of cell (i, j): sines and cosines of j, then of i."""
    axis, cells = axis_positions(30, 4), torch.tensor([[3, 29], [0, 0]])
    frequencies = np.array([1.0, 0.01])
    expected = np.concatenate([np.sin(29 * frequencies), np.cos(29 * frequencies), np.sin(3 * frequencies)])
    expected = torch.tensor(np.concatenate([expected, np.cos(3 * frequencies)]), dtype=torch.float32)
    found = grid_positions(cells, axis)
    assert_close(found[0], expected, "float32")
    assert_close(found[1], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]), "float32")


def test_is_a_longnet_over_class_token_and_tiles() -> None:
    model = small()
    features, coords = slides(2, 9)
    encoder = LongNetEncoder(model.config).eval()
    encoder.load_state_dict(model.encoder.state_dict())
    cells = (coords - 17) // 256
    x = features @ model.patch_embed.proj.weight.T + model.patch_embed.proj.bias
    x = x + grid_positions(cells, axis_positions(20, 8))
    x = torch.cat((model.cls_token.expand(2, -1, -1), x), 1)
    found = encoder(None, token_embeddings=x, return_all_hiddens=True)
    assert_close(model(features, coords), model.norm(found["encoder_out"][:, 0]), "float32")
    pooled = small(global_pool=True)
    assert_close(pooled(features, coords), model.norm(found["encoder_out"][:, 1:].mean(1)), "float32")
    chosen = small(feature_layers="[0,2]")
    states = [model.norm(found["encoder_states"][layer][:, 0]) for layer in (0, 2)]
    assert_close(chosen(features, coords), torch.cat(states, -1), "float32")


@pytest.mark.parametrize("pool", [False, True], ids=["class-token", "mean"])
def test_padding_changes_nothing(pool: bool) -> None:
    model = small(global_pool=pool)
    features, coords = slides(1, 9)
    others, places = slides(1, 14)
    batch = torch.cat((torch.nn.functional.pad(features, (0, 0, 0, 5), value=7.0), others))
    cells = torch.cat((torch.nn.functional.pad(coords, (0, 0, 0, 5)), places))
    mask = torch.arange(14)[None] >= torch.tensor([[9], [14]])
    assert_close(model(batch, cells, mask)[0], model(features, coords)[0], "float32")


def test_gradients_reach_everything() -> None:
    torch.manual_seed(0)
    model = SlideClassifier(SlideEncoderConfig(**SMALL, checkpoint_activations=True), 3)
    model(*slides(2, 9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.dim() > 1)


def test_mistakes_are_named() -> None:
    features, coords = slides(1, 3)
    with pytest.raises(InputError, match=r"features of 5 values, but feature_dim is 6; .* feature_dim=5"):
        small()(features[..., :5], coords)
    with pytest.raises(InputError, match=r"coordinate 7680 .* grid_size \(20\) .* grid_size=31"):
        small()(features, coords.clamp(min=30 * 256))
    with pytest.raises(InputError, match=r"coordinate -256 .* none is negative"):
        small()(features, torch.full_like(coords, -1))
    with pytest.raises(ValueError, match=r"feature_layers \(\[3\]\) must not be above encoder_layers \(2\)"):
        small(feature_layers=[3])
    with pytest.raises(ValueError, match=r"encoder_embed_dim \(18\) must be a multiple of 4"):
        small(encoder_embed_dim=18, encoder_attention_heads=2)
    with pytest.raises(ValueError, match=r"max_slide_size \(4096\) must be at least 32 times tile_size \(256\)"):
        small(max_slide_size=4096)
