"""A retention model that steps with a state."""

from typing import Any

import torch
from torch import nn
from torchscale.architecture.config import RetNetConfig
from torchscale.architecture.retnet import RetNetDecoder

torch.manual_seed(0)
config = RetNetConfig(
    vocab_size=40, decoder_layers=2, decoder_embed_dim=16, decoder_value_embed_dim=32, decoder_retention_heads=2,
    decoder_ffn_embed_dim=32, recurrent_chunk_size=4, activation_fn="swish",
)  # fmt: skip
model = RetNetDecoder(config, embed_tokens=nn.Embedding(40, 16)).eval()
tokens = torch.randint(0, 40, (3, 11))
with torch.no_grad():
    whole, _ = model(tokens)
    state: dict[Any, Any] = {}
    steps = torch.cat([model(tokens[:, : n + 1], incremental_state=state)[0] for n in range(6)], 1)
    assert torch.allclose(steps, whole[:, :6], atol=1e-4)
    assert state[0]["prev_key_value"].shape == (3, 2, 16, 8)
    order = torch.tensor([2, 0, 1])
    for layer in state.values():
        for name in layer:
            layer[name] = layer[name].index_select(0, order)
    tokens = tokens[order]
    steps = torch.cat([model(tokens[:, : n + 1], incremental_state=state)[0] for n in range(6, 11)], 1)
    assert torch.allclose(steps, whole[order][:, 6:], atol=1e-4)
    prompted: dict[Any, Any] = {}
    assert torch.allclose(model(tokens[:, :6], incremental_state=prompted)[0], whole[order][:, :6], atol=1e-4)
model.chunkwise_recurrent = True
model(tokens)[0].sum().backward()
assert torch.allclose(model(tokens)[0], whole[order], atol=1e-4)
print("stepped")
