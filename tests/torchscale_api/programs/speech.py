"""Retention in models of speech: blocks between convolutions, features instead of tokens, a forward pass replaced."""

import pickle
from types import SimpleNamespace

import torch
from torch import nn
from torchscale.architecture import retnet
from torchscale.architecture.config import RetNetConfig
from torchscale.architecture.retnet import RetNetDecoder, RetNetRelPos
from torchscale.component.feedforward_network import FeedForwardNetwork
from torchscale.component.multiscale_retention import MultiScaleRetention, get_activation_fn, theta_shift


class Block(nn.Module):
    """A conformer's block with retention for attention."""

    def __init__(self, width, heads):
        super().__init__()
        args = SimpleNamespace(decoder_embed_dim=width, decoder_retention_heads=heads, recurrent_chunk_size=4,
                               layernorm_eps=1e-5)  # fmt: skip
        self.positions = RetNetRelPos(args)
        self.retention = MultiScaleRetention(args, width, 2 * width, heads)
        self.ffn = FeedForwardNetwork(width, 2 * width, "swish", 0.1, 0.0, 1e-5)
        self.convolution = nn.Conv1d(width, width, 3, padding=2, groups=width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, chunkwise=False):
        rel_pos = self.positions(x.size(1), chunkwise_recurrent=chunkwise)
        x = x + 0.5 * self.ffn(self.norms[0](x))
        x = x + self.retention(self.norms[1](x), rel_pos, chunkwise_recurrent=chunkwise)
        return x + self.convolution(self.norms[2](x).transpose(1, 2))[..., : x.size(1)].transpose(1, 2)

    def step(self, x, past, state):
        rel_pos = self.positions(past + 1, activate_recurrent=True)
        return self.retention(x, rel_pos, incremental_state=state)


class Bidirectional(MultiScaleRetention):
    """Decays in both directions."""

    def forward(self, x, rel_pos, chunkwise_recurrent=False, incremental_state=None):
        (sin, cos), _ = rel_pos
        place = torch.arange(x.size(1), dtype=torch.float)
        mask = 0.9 ** (place[:, None] - place).abs()
        mask = (mask / mask.sum(-1, keepdim=True).sqrt()).expand(self.num_heads, -1, -1)
        q, k, v, g = self.q_proj(x), self.k_proj(x) * self.scaling, self.v_proj(x), self.g_proj(x)
        shape = (*x.shape[:2], self.num_heads, self.key_dim)
        q, k = (
            theta_shift(q.view(shape).transpose(1, 2), sin, cos),
            theta_shift(k.view(shape).transpose(1, 2), sin, cos),
        )
        output = self.group_norm(self.parallel_forward(q, k, v, mask))
        output = output.reshape(*x.shape[:2], self.head_dim * self.num_heads)
        return self.out_proj(self.gate_fn(g) * output)


torch.manual_seed(0)
block, x = Block(16, 2).eval(), torch.randn(2, 8, 16)
whole = block(x)
assert torch.allclose(whole, block(x, chunkwise=True), atol=1e-4)
normed = torch.randn(2, 8, 16)
state: dict[str, torch.Tensor] = {}
steps = torch.cat([block.step(normed[:, n : n + 1], n, state) for n in range(8)], 1)
assert torch.allclose(steps, block.retention(normed, block.positions(8)), atol=1e-4)
both = Bidirectional(SimpleNamespace(layernorm_eps=1e-5), 16, 32, 2)
output = both(x, block.positions(8))
(gradient,) = torch.autograd.grad(output[:, 0].square().sum(), both.v_proj.weight)
assert gradient.abs().sum() > 0 and get_activation_fn("swish") is not None

config = RetNetConfig(vocab_size=-1, decoder_embed_dim=16, decoder_value_embed_dim=32, decoder_retention_heads=2,
                      decoder_ffn_embed_dim=32, decoder_layers=2, recurrent_chunk_size=None, no_output_layer=True,
                      fsdp=False, checkpoint_activations=True)  # fmt: skip
model = RetNetDecoder(config)
frames = torch.randn(2, 6, 16)
hidden, extra = model(torch.zeros(2, 6, dtype=torch.long), token_embeddings=frames, features_only=True)
assert hidden.shape == (2, 6, 16) and extra["inner_states"][0].shape == (2, 6, 16)
hidden.sum().backward()
model.eval()
with torch.no_grad():
    states: dict[int, dict] = {}
    parts = [model(torch.zeros(2, n, dtype=torch.long), states, token_embeddings=frames[:, :n])[0] for n in range(1, 7)]
    assert torch.allclose(torch.cat(parts, 1), model(torch.zeros(2, 6), token_embeddings=frames)[0], atol=1e-4)

# Programs replace the forward pass of all layers at once, and save whole models.
original = MultiScaleRetention.forward
calls: list[nn.Module] = []


def forward(self, *args, **kwargs):
    calls.append(self)
    return original(self, *args, **kwargs)


retnet.MultiScaleRetention.forward = forward
again = pickle.loads(pickle.dumps(model))
unused = torch.zeros(2, 6)
assert torch.equal(again(unused, token_embeddings=frames)[0], model(unused, token_embeddings=frames)[0])
assert len(calls) == 4
print("heard")
