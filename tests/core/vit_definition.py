"""The plain ViT of arXiv:2010.11929, sec. 3.1, written out over weights by timm's names."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


def timm_weights(layers: int, width: int, inner: int, patch: int, patches: int, classes: int) -> dict[str, Tensor]:
    """Random weights of a ViT with a class token, by timm's names."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    sizes: dict[str, tuple[int, ...]] = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (inner, width),
    }
    sizes |= {"mlp.fc2": (width, inner), "norm1": (width,), "norm2": (width,)}
    for layer in range(layers):
        for name, shape in sizes.items():
            shapes[f"blocks.{layer}.{name}.weight"] = shape
            shapes[f"blocks.{layer}.{name}.bias"] = shape[:1]
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)


def vit_scores(weights: dict[str, Tensor], images: Tensor, heads: int, layers: int) -> Tensor:
    """(batch, 3, height, width) to (batch, classes)."""
    features = vit_features(weights, images, heads, layers)
    return linear(weights, "head", norm(weights, "norm", features)[:, 0])


def vit_features(
    weights: dict[str, Tensor], images: Tensor, heads: int, layers: int, masked: Tensor | None = None
) -> Tensor:
    """(batch, 3, height, width) to (batch, tokens, width); patches that are masked (batch, patches) are hidden."""

    patch = weights["patch_embed.proj.weight"]
    size = patch.size(-1)
    pixels = images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = pixels @ patch.flatten(1).T + weights["patch_embed.proj.bias"]
    if masked is not None:
        x = torch.where(masked[..., None], weights["mask_token"], x)
    x = torch.cat((weights["cls_token"].expand(len(x), -1, -1), x), 1) + weights["pos_embed"]
    for layer in range(layers):
        block = f"blocks.{layer}"
        joined = norm(weights, f"{block}.norm1", x) @ weights[f"{block}.attn.qkv.weight"].T + _qkv_bias(weights, block)
        queries, keys, values = joined.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        shares = (queries @ keys.transpose(-1, -2) / math.sqrt(queries.size(-1))).softmax(-1)
        attended = linear(weights, f"{block}.attn.proj", (shares @ values).transpose(1, 2).flatten(2))
        x = x + weights.get(f"{block}.gamma_1", 1.0) * attended
        hidden = F.gelu(linear(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", x)))
        x = x + weights.get(f"{block}.gamma_2", 1.0) * linear(weights, f"{block}.mlp.fc2", hidden)
    return x


def _qkv_bias(weights: dict[str, Tensor], block: str) -> Tensor:
    """timm's bias of queries, keys and values, or BEiT's, without one of keys."""
    if f"{block}.attn.qkv.bias" in weights:
        return weights[f"{block}.attn.qkv.bias"]
    query, value = (weights[f"{block}.attn.{name}_bias"] for name in "qv")
    return torch.cat((query, torch.zeros_like(query), value))


def as_beit(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Weights by timm's names as BEiT has them: without bias of keys, and with layer scale."""
    result, generator = dict(weights), torch.Generator().manual_seed(1)
    for block in (f"blocks.{layer}" for layer in range(layers)):
        query, _, value = result.pop(f"{block}.attn.qkv.bias").chunk(3)
        result |= {f"{block}.attn.q_bias": query, f"{block}.attn.v_bias": value}
        result |= {f"{block}.gamma_{n}": torch.rand(query.shape, generator=generator) for n in (1, 2)}
    return result
