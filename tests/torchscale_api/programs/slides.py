"""A slide encoder over LongNetEncoder."""

import numpy as np
import torch
from torch import nn
from torchscale.architecture.config import EncoderConfig
from torchscale.model.LongNet import LongNetEncoder


def make_longnet_from_name(layers, width, segments, dropout, drop_path):
    args = EncoderConfig()
    args.override(type("Args", (), {"encoder_layers": layers, "encoder_embed_dim": width, "dropout": None}))
    for name, value in {
        "encoder_ffn_embed_dim": 4 * width, "encoder_attention_heads": 4, "dropout": dropout,
        "drop_path_rate": drop_path, "segment_length": str(list(segments)), "dilated_ratio": "[1, 2, 4, 8, 16]",
        "flash_attention": True, "block_shift": True,
    }.items():  # fmt: skip
        setattr(args, name, value)
    args.postprocessing()
    return LongNetEncoder(args)


class Slide(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(6, 16)
        segments = np.power(2, np.linspace(np.log2(16), 8, 5)).astype(int)
        self.encoder = make_longnet_from_name(2, 16, segments, 0.1, 0.1)
        self.norm = nn.LayerNorm(16, eps=1e-6)

    def forward(self, x, all_layers=False):
        x = self.proj(x)
        if all_layers:
            states = self.encoder(src_tokens=None, token_embeddings=x, return_all_hiddens=True)["encoder_states"]
        else:
            states = [self.encoder(src_tokens=None, token_embeddings=x)["encoder_out"]]
        return [self.norm(state)[:, 0] for state in states]


torch.manual_seed(0)
slide = Slide()
assert slide.encoder.args.segment_length == [16, 32, 64, 128, 256] and slide.encoder.args.encoder_layers == 2
outcomes = slide(torch.randn(2, 101, 6), all_layers=True)
assert len(outcomes) == 3 and outcomes[0].shape == (2, 16)
slide(torch.randn(1, 101, 6))[0].sum().backward()
assert slide.proj.weight.grad is not None
print("embedded")
