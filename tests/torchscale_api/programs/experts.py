"""A training loop with a mixture of experts, in however many processes there are."""

import torch
import torch.distributed as dist
from torch import nn
from torchscale.architecture.config import EncoderConfig
from torchscale.architecture.encoder import Encoder
from torchscale.component.feedforward_network import make_experts
from torchscale.component.xmoe.moe_layer import MOELayer
from torchscale.component.xmoe.routing import Top1Gate, Top2Gate

torch.manual_seed(0)
args = EncoderConfig(moe_expert_count=4, moe_freq=2, encoder_layers=2, encoder_embed_dim=8, encoder_ffn_embed_dim=16,
                     encoder_attention_heads=2, vocab_size=20)  # fmt: skip
world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
for gate in (Top1Gate(8, 4), Top2Gate(8, 4, second_expert_policy="all")):
    layer = MOELayer(gate, make_experts(args, 8, 16), args)
    assert layer.num_local_experts == 4 // world
    assert all(getattr(p, "expert", False) for p in layer.experts.parameters())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    target = torch.randn(3, 5, 8)
    losses = []
    for _ in range(8):
        out, l_aux = layer(target[: 3 - rank])
        loss = (out - target[: 3 - rank]).square().mean() + 0.01 * l_aux
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] and set(layer.metadata) >= {"entropy_gating"}
encoder = Encoder(args, nn.Embedding(20, 8))
found = encoder(torch.randint(0, 20, (2, 6)))
assert found["l_aux"][0] is None and float(found["l_aux"][1]) > 0
print("trained", flush=True)
