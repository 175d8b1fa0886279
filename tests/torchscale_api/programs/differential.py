"""Decoders that go their own ways: attention that differs by depth, and keys shared by all upper layers."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchscale.architecture.config import DecoderConfig
from torchscale.architecture.decoder import Decoder, DecoderLayer
from torchscale.component.gate_linear_unit import GLU
from torchscale.component.multihead_attention import MultiheadAttention
from torchscale.component.rms_norm import RMSNorm
from torchscale.component.xpos_relative_position import apply_rotary_pos_emb, fixed_pos_embedding


class DifferentialAttention(nn.Module):
    """Two softmaxes whose difference attends (Differential Transformer, arXiv:2410.05258)."""

    def __init__(self, args, width, depth):
        super().__init__()
        self.heads, self.size = args.decoder_attention_heads, width // args.decoder_attention_heads // 2
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.start = 0.8 - 0.6 * math.exp(-0.3 * depth)
        self.mix = nn.Parameter(torch.zeros(self.size).normal_(0, 0.1))
        self.subln = RMSNorm(2 * self.size, eps=1e-5, elementwise_affine=True)

    def forward(self, query, key, value, key_padding_mask=None, incremental_state=None, attn_mask=None, **kwargs):
        batch, length = query.shape[:2]
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k = (x.view(batch, length, 2 * self.heads, self.size).transpose(1, 2) for x in (q, k))
        sin, cos = fixed_pos_embedding(torch.zeros(length, self.size // 2))
        q, k = (apply_rotary_pos_emb(x, sin, cos) for x in (q, k))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(self.size)).view(batch, self.heads, 2, length, length)
        weights = (scores + attn_mask).softmax(-1)
        factor = self.mix.sum().exp() - 1 + self.start
        x = (weights[:, :, 0] - factor * weights[:, :, 1]) @ v.view(batch, length, self.heads, -1).transpose(1, 2)
        x = self.subln(x) * (1 - self.start)
        return self.out_proj(x.transpose(1, 2).flatten(2)), weights


class DifferentialLayer(DecoderLayer):
    def __init__(self, args, depth, **kwargs):
        self.depth = depth
        super().__init__(args, depth, **kwargs)

    def build_self_attention(self, embed_dim, args):
        return DifferentialAttention(args, embed_dim, self.depth)

    def build_ffn(self, embed_dim, args):
        return GLU(embed_dim, self.ffn_dim, "swish", args.dropout, args.activation_dropout)


class DifferentialDecoder(Decoder):
    def build_decoder_layer(self, args, depth, is_moe_layer=False, is_encoder_decoder=False):
        return DifferentialLayer(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)


class CrossLayer(DecoderLayer):
    """Attends to what the lower half has left (YOCO, arXiv:2405.05254), without self-attention."""

    def build_self_attention(self, embed_dim, args):
        return MultiheadAttention(args, embed_dim, args.decoder_attention_heads, encoder_decoder_attention=True)

    def forward(self, x, shared, mask):
        residual = x
        x, _ = self.self_attn(self.self_attn_layer_norm(x), shared, shared, attn_mask=mask)
        x = self.residual_connection(self.dropout_module(x), residual)
        residual = x
        return self.residual_connection(self.ffn(self.final_layer_norm(x)), residual)


class YOCO(Decoder):
    def build_decoder_layer(self, args, depth, is_moe_layer=False, is_encoder_decoder=False):
        kind = DecoderLayer if depth < args.decoder_layers // 2 else CrossLayer
        return kind(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)

    def forward(self, prev_output_tokens, features_only=False, **kwargs):
        x, _ = self.forward_embedding(prev_output_tokens)
        mask = torch.triu(torch.zeros(x.size(1), x.size(1)).fill_(float("-inf")).type_as(x), 1)
        half = self.num_layers // 2
        for layer in self.layers[:half]:
            x, attn, _, l_aux = layer(x, self_attn_mask=mask)
            assert attn.shape[1:] == mask.shape and l_aux is None
        shared = F.layer_norm(x, x.shape[-1:])
        for layer in self.layers[half:]:
            x = layer(x, shared, mask)
        x = self.layer_norm(x)
        return (x if features_only else self.output_layer(x)), {"inner_states": [x]}


torch.manual_seed(0)
sizes = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32, "decoder_attention_heads": 2, "vocab_size": 30}
tokens = torch.randint(0, 30, (2, 9))
for kind, subln in ((DifferentialDecoder, False), (YOCO, True)):
    model = kind(DecoderConfig(decoder_layers=4, subln=subln, share_decoder_input_output_embed=True, **sizes),
                 embed_tokens=nn.Embedding(30, 16))  # fmt: skip
    assert model.output_projection.weight is model.embed_tokens.weight
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    changed = tokens.clone()
    changed[:, 5:] = 0
    assert torch.allclose(model(tokens)[0][:, :5], model(changed)[0][:, :5], atol=1e-5)
print("decoded")
