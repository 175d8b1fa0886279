"""A BEiT-3 wrapper with heads, which captions token by token."""

from typing import Any

import torch
from torch import nn
from torchscale.architecture.config import EncoderConfig
from torchscale.model.BEiT3 import BEiT3


def config(**overrides):
    return EncoderConfig(
        img_size=32, patch_size=8, vocab_size=50, multiway=True, layernorm_embedding=False, normalize_output=True,
        no_output_layer=True, drop_path_rate=0.1, encoder_embed_dim=16, encoder_attention_heads=2,
        encoder_ffn_embed_dim=32, encoder_layers=2, checkpoint_activations=False, unknown_option=3, **overrides,
    )  # fmt: skip


class Wrapper(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.beit3 = BEiT3(args)
        self.apply(self._init_weights)

    def _init_weights(self, m):
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.constant_(m.bias, 0)
        elif isinstance(m, nn.LayerNorm):
            nn.init.constant_(m.bias, 0)
            nn.init.constant_(m.weight, 1.0)

    def get_num_layers(self):
        return self.beit3.encoder.num_layers


class Classifier(Wrapper):
    def __init__(self, args):
        args.normalize_output = False
        super().__init__(args)
        self.fc_norm = nn.LayerNorm(args.encoder_embed_dim)
        self.head = nn.Linear(args.encoder_embed_dim, 3)

    def forward(self, image):
        x = self.beit3(textual_tokens=None, visual_tokens=image)["encoder_out"]
        return self.head(self.fc_norm(x[:, 1:, :].mean(1)))


class Captioner(Wrapper):
    def __init__(self, args):
        super().__init__(args)
        self.mlm_head = nn.Linear(args.encoder_embed_dim, args.vocab_size)

    def forward(self, image, text_ids, padding_mask, language_masked_pos, text_len=None, incremental_state=None):
        text_len = text_len if text_len is not None else text_ids.size(1)
        image_len = self.beit3.vision_embed.num_position_embeddings()
        max_len = text_len + image_len
        mask = torch.zeros((max_len, max_len), dtype=torch.long)
        mask[image_len:, image_len:] = torch.tril(torch.ones(text_len, text_len, dtype=torch.long))
        mask[image_len:, :image_len] = 1
        mask[:image_len, :image_len] = 1
        mask = 1 - mask
        positions = None
        if incremental_state is not None:
            for idx in range(self.get_num_layers()):
                if idx not in incremental_state:
                    incremental_state[idx] = {}
            end = text_ids.size(1) if image is None else image_len + text_ids.size(1)
            if image is None:
                mask = mask[-2:]
                positions = torch.arange(text_len, 2 + text_len).unsqueeze(0)
            else:
                mask, positions = mask[:end], None
        outputs = self.beit3(
            textual_tokens=text_ids, visual_tokens=image, text_padding_position=padding_mask, attn_mask=mask,
            incremental_state=incremental_state, positions=positions,
        )  # fmt: skip
        if image is not None:
            feats = outputs["encoder_out"][:, image_len:]
        else:
            feats = outputs["encoder_out"]
        if language_masked_pos is not None:
            feats = feats[language_masked_pos.bool()]
        return self.mlm_head(feats), incremental_state


torch.manual_seed(0)
image = torch.randn(2, 3, 32, 32)
classifier = Classifier(config())
assert classifier.beit3.encoder.layer_norm is None and classifier(image).shape == (2, 3)
classifier(image).sum().backward()
assert classifier.beit3.encoder.embed_positions.A.weight.grad is not None

captioner = Captioner(config()).eval()
text, masked = torch.randint(4, 50, (2, 6)), torch.zeros(2, 6).index_fill_(1, torch.tensor([2]), 1)
padding = torch.zeros(2, 6, dtype=torch.long)
logits, _ = captioner(image, text, padding, masked)
assert logits.shape == (2, 50)
with torch.no_grad():
    whole, _ = captioner(image, text[:, :2], None, None, text_len=2)
    state: dict[Any, Any] = {}
    first, state = captioner(image, text[:, :2], None, None, text_len=2, incremental_state=state)
    assert torch.allclose(first, whole, atol=1e-5)
    assert set(state) == {0, 1} and state[0]["prev_key"].shape == (2, 2, 17 + 2, 8)
    for layer in state.values():
        for name in layer:
            layer[name] = layer[name][:, :, :-1]
    step, state = captioner(None, text[:, 1:3], None, None, text_len=3, incremental_state=state)
    assert step.shape == (2, 2, 50) and state[1]["prev_value"].size(2) == 17 + 3
print("captioned")
