"""A decoder subclass with its own attention, and image embeddings in the prompt, after Kosmos."""

from typing import Any

import torch
from torch import nn
from torchscale.architecture.config import DecoderConfig
from torchscale.architecture.decoder import Decoder, DecoderLayer
from torchscale.component.embedding import PositionalEmbedding, TextEmbedding
from torchscale.component.multihead_attention import MultiheadAttention


class MyAttention(MultiheadAttention):
    calls = 0

    def attention_ops(self, q, k, v, key_padding_mask=None, attn_mask=None, rel_pos=None, is_causal=False):
        MyAttention.calls += 1
        return super().attention_ops(q, k, v, key_padding_mask, attn_mask, rel_pos, is_causal)


class MyLayer(DecoderLayer):
    def build_self_attention(self, embed_dim, args):
        heads, dropout = args.decoder_attention_heads, args.attention_dropout
        return MyAttention(args, embed_dim, heads, dropout=dropout, self_attention=True, subln=args.subln)


class LMDecoder(Decoder):
    def build_decoder_layer(self, args, depth, is_moe_layer=False, is_encoder_decoder=False):
        return MyLayer(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)

    def forward(self, prev_output_tokens, img_features=None, img_gpt_input_mask=None, incremental_state=None, **kwargs):
        embedding = self.embed_tokens(prev_output_tokens)
        if img_features is not None:
            embedding = embedding.clone()
            embedding[img_gpt_input_mask] = img_features
        return super().forward(
            prev_output_tokens, token_embeddings=embedding, incremental_state=incremental_state, **kwargs
        )


args = type("Args", (), {"decoder_layers": 2, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32,
                         "decoder_attention_heads": 2, "vocab_size": 40, "xpos_rel_pos": True,
                         "decoder_normalize_before": True, "no_output_layer": None, "multiway": True})  # fmt: skip
config = DecoderConfig()
config.override(args)
torch.manual_seed(0)
words, places = TextEmbedding(40, 16, 1), PositionalEmbedding(64, 16)
projection = nn.Linear(16, 40, bias=False)
projection.weight = words.weight
decoder = LMDecoder(config, words, places, projection, is_encoder_decoder=False).eval()
tokens = torch.randint(4, 40, (2, 9))
mask = torch.zeros(2, 9, dtype=torch.bool)
mask[:, 1:4] = True
features = torch.randn(6, 16)
logits, extra = decoder(tokens, img_features=features, img_gpt_input_mask=mask)
assert logits.shape == (2, 9, 40) and len(extra["inner_states"]) == 3 and MyAttention.calls == 2
state: dict[Any, Any] = {"is_first_step": True}
first = decoder(tokens[:, :5], features, mask[:, :5], incremental_state=state)[0]
state["is_first_step"] = False
steps = [decoder(tokens[:, : n + 1], features, mask[:, : n + 1], incremental_state=state)[0] for n in range(5, 9)]
assert torch.allclose(torch.cat([first, *steps], 1), logits, atol=1e-4)
order = torch.tensor([1, 0])
for layer in (0, 1):
    for name, tensor in state[layer].items():
        state[layer][name] = tensor.index_select(0, order)

resampler = MultiheadAttention(config, 16, 2, dropout=0.0, encoder_decoder_attention=True, subln=True)
latents, _ = resampler(torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16))
assert latents.shape == (2, 3, 16)
print("prompted")
