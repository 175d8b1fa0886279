"""ViT: equal to a written-out definition, from weights by timm's names, and at other sizes."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.models import build_model

from tests.core.vit_definition import as_beit, timm_weights, vit_scores
from tests.helpers import assert_close
from tests.plugin.registered import parse
from torchscale_fairseq import ViTClassifier, ViTConfig
from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.models._vit_weights import own_names

LAYERS, HEADS, CLASSES = 2, 2, 5
SIZES = ["--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24"]
SIZES += ["--encoder-attention-heads", "2"]
SMALL: dict[str, Any] = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24}
SMALL |= {"encoder_attention_heads": 2, "img_size": 32, "patch_size": 8}


def model_of(arch: str, *flags: str, img_size: int = 32) -> Any:
    torch.manual_seed(0)
    cfg = parse(arch, *SIZES, *flags)
    cfg.img_size, cfg.patch_size = img_size, 8
    return build_model(cfg, SimpleNamespace(num_classes=CLASSES)).eval()


def released(folder: Path) -> tuple[dict[str, torch.Tensor], Path]:
    weights = timm_weights(LAYERS, 16, 24, 8, 16, CLASSES)
    torch.save({"model": weights}, folder / "vit.pth")
    return weights, folder / "vit.pth"


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def test_values_and_gradients_are_those_of_the_definition(tmp_path: Path) -> None:
    weights, path = released(tmp_path)
    model = model_of("vit_tiny")
    model.load_weights(path)
    pixels = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    scores = model(patches_of(pixels))
    for weight in weights.values():
        weight.requires_grad_()
    expected = vit_scores(weights, pixels / 127.5 - 1, HEADS, LAYERS)
    assert_close(scores, expected, "float32")
    assert_close(ViTClassifier.forward_patches(model, patches_of(pixels)), scores, "float32")
    assert_close(model.score(model.model(pixels / 127.5 - 1)), scores, "float32")
    scores.square().mean().backward()
    expected.square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    named = own_names({name: weight.grad for name, weight in weights.items()})
    assert set(named) == set(found)
    for name, gradient in named.items():
        assert_close(found[name], gradient, "float32")


def test_weights_for_another_size_are_interpolated(tmp_path: Path) -> None:
    weights, path = released(tmp_path)
    model = model_of("vit_tiny", img_size=64)
    model.load_weights(path)
    assert torch.equal(model.model.pos_embed[:, 0], weights["pos_embed"][:, 0])
    assert model(torch.zeros(1, 64, 3, 8, 8, dtype=torch.uint8)).shape == (1, CLASSES)


def test_weights_of_a_plain_model_do_not_fit_subln(tmp_path: Path) -> None:
    _, path = released(tmp_path)
    with pytest.raises(CheckpointError, match="it is not a ViT of this architecture"):
        model_of("vit_magneto_tiny").load_weights(path)


def test_weights_with_a_class_token_do_not_fit_the_mean(tmp_path: Path) -> None:
    _, path = released(tmp_path)
    with pytest.raises(CheckpointError, match="take the --arch, --patch-size and --pooling"):
        model_of("vit_tiny", "--pooling", "mean").load_weights(path)


def test_weights_by_beits_names(tmp_path: Path) -> None:
    """Without a bias of keys, and with layer scale, which timm calls ls1 and ls2."""
    weights = as_beit(released(tmp_path)[0], LAYERS)
    pixels = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    expected = vit_scores(weights, pixels / 127.5 - 1, HEADS, LAYERS)
    for names in (("gamma_1", "gamma_2"), ("ls1.gamma", "ls2.gamma")):
        renamed = {name.replace("gamma_1", names[0]).replace("gamma_2", names[1]): w for name, w in weights.items()}
        torch.save({"module": renamed}, tmp_path / "beit.pth")
        model = model_of("vit_tiny")
        model.load_weights(tmp_path / "beit.pth")
        assert_close(model(patches_of(pixels)), expected, "float32")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.attn.relative_position_bias_table", "no place: its positions are learned ones alone"),
        ("rel_pos_bias.relative_position_bias_table", "no place: its positions are learned ones alone"),
        ("blocks.1.attn.q_norm.weight", "no place: it is of another architecture"),
        ("blocks.2.norm1.weight", "no place: it is of another architecture"),
        ("reg_token", "no place: it is of another architecture"),
    ],
)
def test_other_parts_of_an_encoder_are_refused_by_name(name: str, message: str, tmp_path: Path) -> None:
    weights, path = released(tmp_path)
    torch.save({**weights, name: torch.zeros(16)}, path)
    with pytest.raises(CheckpointError, match=rf"has {re.escape(name)}, for which this model has {message}"):
        model_of("vit_tiny").load_weights(path)


def test_a_head_for_the_mean_next_to_a_class_token_is_left_out(tmp_path: Path, caplog: Any) -> None:
    weights, path = released(tmp_path)
    torch.save({f"fc_{name}" if name.startswith("norm.") else name: w for name, w in weights.items()}, path)
    model = model_of("vit_tiny")
    with caplog.at_level("WARNING"):
        model.load_weights(path)
    assert "scores the mean of patches next to a class token: its head is left out" in caplog.text
    assert torch.equal(model.model.pos_embed, weights["pos_embed"])
    assert not torch.equal(model.head.weight, weights["head.weight"]) and torch.all(model.fc_norm.weight == 1)


@pytest.mark.parametrize("arch", ["vit_magneto_tiny", "vit_deepnorm_tiny"])
@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_gradients_reach_everything(arch: str, pooling: str) -> None:
    model = model_of(arch, "--pooling", pooling)
    pixels = torch.randint(256, (2, 16, 3, 8, 8), dtype=torch.uint8)
    model(pixels)[:, 0].sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {name for name in without if name.endswith("k_proj.bias")}
    assert (model.model.patch_embed.cls_token is None) == (pooling == "mean")


def test_the_core_refuses_dilated_attention() -> None:
    with pytest.raises(InputError, match="LongViT has it"):
        ViTConfig(**SMALL, segment_length=[4], dilated_ratio=[1])
