"""A whole slide's encoder after Prov-GigaPath: LongNet from a table of configs, positions of a grid, hidden states."""

import numpy as np
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchscale.architecture.config import EncoderConfig
from torchscale.architecture.encoder import Encoder
from torchscale.component.flash_attention import flash_attn_func
from torchscale.model.LongNet import LongNetEncoder, LongNetEncoderLayer

CONFIGS = {
    "LongNet_2_layers_16_dim": {
        "encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
        "dilated_ratio": "[1, 2, 4, 8, 16]", "segment_length": "[1024, 2048, 4096, 8192, 16384]", "block_shift": True,
        "flash_attention": True, "use_xmoe": False, "moe_top1_expert": False, "moe_freq": 0, "moe_expert_count": 0,
    },
}  # fmt: skip


class Recomputing(LongNetEncoder):
    def build_encoder_layer(self, args, depth, is_moe_layer=False, is_encoder_decoder=False):
        layer = LongNetEncoderLayer(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)
        return checkpoint_wrapper(layer)


def make_longnet_from_name(name, segment_length, drop_path_rate=0.1, dropout=0.1, kind=LongNetEncoder):
    args = dict(CONFIGS[name], dropout=dropout, drop_path_rate=drop_path_rate, segment_length=segment_length)
    model = kind(EncoderConfig(**args))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 6000
    return model


class LongNetViT(nn.Module):
    def __init__(self, in_chans=6, embed_dim=16, slide_ngrids=20, tile_size=256, max_wsi_size=8192, **kwargs):
        super().__init__()
        self.patch_embed = nn.Linear(in_chans, embed_dim)
        self.slide_ngrids = slide_ngrids
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", torch.randn(1, slide_ngrids**2 + 1, embed_dim), persistent=False)
        largest = (max_wsi_size // tile_size) ** 2
        segments = str(list(np.power(2, np.linspace(np.log2(64), int(np.log2(largest)), 5)).astype(int)))
        self.encoder = make_longnet_from_name("LongNet_2_layers_16_dim", segments, **kwargs)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.apply(self._init_weights)

    def _init_weights(self, m):
        if isinstance(m, nn.Linear):
            torch.nn.init.xavier_uniform_(m.weight)
            nn.init.constant_(m.bias, 0)
        elif isinstance(m, nn.LayerNorm):
            nn.init.constant_(m.bias, 0)
            nn.init.constant_(m.weight, 1.0)

    def forward(self, x, coords, all_layer_embed=False):
        cells = torch.floor(coords / 256.0)
        place = (cells[..., 0] * self.slide_ngrids + cells[..., 1]).long() + 1
        x = self.patch_embed(x) + self.pos_embed[:, place, :].squeeze(0)
        token = self.cls_token + self.pos_embed[:, :1, :]
        x = torch.cat((token.expand(x.shape[0], -1, -1), x), dim=1)
        if all_layer_embed:
            states = self.encoder(src_tokens=None, token_embeddings=x, return_all_hiddens=all_layer_embed)
            return [self.norm(state)[:, 0] for state in states["encoder_states"]]
        return [self.norm(self.encoder(src_tokens=None, token_embeddings=x)["encoder_out"])[:, 0]]


torch.manual_seed(0)
slide = LongNetViT()
assert slide.encoder.args.segment_length == [64, 128, 256, 512, 1024]
features, coords = torch.randn(2, 150, 6), torch.randint(0, 20, (2, 150, 2)) * 256
layers = slide(features, coords, all_layer_embed=True)
assert len(layers) == 3 and layers[-1].shape == (2, 16)
weights = nn.Linear(3 * 16, 4)
weights(torch.cat(layers, -1)).sum().backward()
assert all(p.grad is not None for name, p in slide.named_parameters() if "encoder.layer_norm" not in name)
with torch.autocast("cpu", dtype=torch.bfloat16):
    slide(features, coords)[0].sum().backward()
again = LongNetViT(kind=Recomputing, dropout=0.0, drop_path_rate=0.0)
again.load_state_dict(slide.state_dict())
again.pos_embed = slide.pos_embed
again(features, coords)[0].sum().backward()
slide.eval()
assert torch.allclose(again(features, coords)[0], slide(features, coords)[0], atol=1e-5)
# LongViT builds the plain encoder from the same config where flash attention is missing.
config = EncoderConfig(encoder_embed_dim=16, encoder_ffn_embed_dim=32, encoder_attention_heads=2, encoder_layers=1,
                       dilated_ratio="[1,2]", segment_length="[4,8]", seq_parallel=False, vocab_size=64,
                       no_output_layer=True, normalize_output=False)  # fmt: skip
plain = Encoder(config, embed_tokens=None, embed_positions=None, output_projection=None, is_encoder_decoder=False)
assert plain.layer_norm is None and plain(None, token_embeddings=torch.randn(1, 9, 16))["encoder_out"].shape[1] == 9
q = torch.randn(1, 5, 2, 8)
output, log_sum = flash_attn_func(q, q, q, softmax_scale=0.5, is_causal=True)
assert output.shape == q.shape and log_sum.shape == (1, 2, 5)
assert torch.allclose(output[:, 0], q[:, 0]) and torch.allclose(log_sum[0, :, 0], 0.5 * q[0, 0].square().sum(-1))
print("embedded")
