"""Heads over BEiT-3 for reasoning on two images, questions and retrieval, with an optimizer of decaying rates."""

import copy
import io
import math

import torch
import torch.nn.functional as F
from torch import nn
from torchscale.architecture.config import EncoderConfig
from torchscale.model.BEiT3 import BEiT3

WIDTH, SIDE = 16, 32


def get_config(img_size=SIDE, drop_path_rate=0.0, mlp_ratio=2, checkpoint_activations=None, **kwargs):
    return EncoderConfig(
        img_size=img_size, patch_size=8, vocab_size=50, multiway=True, layernorm_embedding=False, no_output_layer=True,
        normalize_output=True, drop_path_rate=drop_path_rate, encoder_embed_dim=WIDTH, encoder_attention_heads=2,
        encoder_ffn_embed_dim=int(WIDTH * mlp_ratio), encoder_layers=2, checkpoint_activations=checkpoint_activations,
    )  # fmt: skip


class ModelWrapper(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.beit3 = BEiT3(args)

    @torch.jit.ignore
    def no_weight_decay(self):
        return {"pos_embed", "cls_token", "beit3.encoder.embed_positions.A.weight", "beit3.vision_embed.cls_token"}


class Pooler(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.dense = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.dense(self.norm(x[:, 0, :])))


class VisualReasoning(ModelWrapper):
    def __init__(self, args):
        super().__init__(args)
        self.head = nn.Linear(4 * WIDTH, 2)

    def forward(self, image_a, image_b, text, padding_mask):
        outputs = self.beit3(
            textual_tokens=torch.cat((text, text), 0),
            visual_tokens=torch.cat((image_a, image_b), 0),
            text_padding_position=torch.cat((padding_mask, padding_mask), 0),
        )
        x, split = outputs["encoder_out"], outputs["multiway_split_position"]
        vision, language = x[:, 0, :], x[:, split, :]
        first, second = torch.split(vision, vision.size(0) // 2)
        words, again = torch.split(language, language.size(0) // 2)
        return self.head(torch.cat((first, second, words, again), -1))


class QuestionAnswering(ModelWrapper):
    def __init__(self, args):
        args.normalize_output = False
        super().__init__(args)
        self.pooler, self.head = Pooler(WIDTH), nn.Linear(WIDTH, 7)

    def forward(self, image, question, padding_mask):
        found = self.beit3(textual_tokens=question, visual_tokens=image, text_padding_position=padding_mask)
        return self.head(self.pooler(found["encoder_out"]))


class Retrieval(ModelWrapper):
    def __init__(self, args):
        super().__init__(args)
        self.language_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.vision_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def forward(self, image=None, text=None, padding_mask=None):
        vision = language = None
        if image is not None:
            x = self.beit3(textual_tokens=None, visual_tokens=image, text_padding_position=None)["encoder_out"]
            vision = F.normalize(self.vision_head(x[:, 0, :]), dim=-1)
        if text is not None:
            x = self.beit3(textual_tokens=text, visual_tokens=None, text_padding_position=padding_mask)["encoder_out"]
            language = F.normalize(self.language_head(x[:, 0, :]), dim=-1)
        if vision is None or language is None:
            return vision, language
        return self.logit_scale.exp() * vision @ language.t()


def layer_of(name, layers):
    if "embed" in name and "layers" not in name:
        return 0
    return int(name.split("layers.")[1].split(".")[0]) + 1 if "encoder.layers." in name else layers - 1


def groups(model, decay=0.7):
    layers, found = model.beit3.encoder.num_layers + 2, {}
    for name, parameter in model.named_parameters():
        weight_decay = 0.0 if parameter.dim() == 1 or name in model.no_weight_decay() else 0.05
        rate = 1e-3 * decay ** (layers - 1 - layer_of(name, layers))
        group = found.setdefault((rate, weight_decay), {"params": [], "lr": rate, "weight_decay": weight_decay})
        group["params"].append(parameter)
    return list(found.values())


def enlarge(state, model):
    """Positions of a smaller image, interpolated for the model's."""
    key = "beit3.encoder.embed_positions.A.weight"
    old, new = state[key].float(), model.beit3.vision_embed.num_patches
    extra = model.beit3.vision_embed.num_position_embeddings() + 2 - new
    side, target = round((old.size(0) - extra) ** 0.5), round(new**0.5)
    grid = old[extra:].view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    state[key] = torch.cat((old[:extra], grid.permute(0, 2, 3, 1).flatten(1, 2)[0]))
    return state


torch.manual_seed(0)
image, text = torch.randn(2, 3, SIDE, SIDE), torch.randint(4, 50, (2, 6))
padding = torch.tensor([[0] * 6, [0] * 4 + [1] * 2])
reasoning = VisualReasoning(get_config())
assert reasoning(image, image, text, padding).shape == (2, 2)
questions = QuestionAnswering(get_config(drop_path_rate=0.2))
optimizer = torch.optim.AdamW(groups(questions))
average = copy.deepcopy(questions)
before = [float(p.detach().sum()) for p in questions.parameters()]
for _ in range(2):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.binary_cross_entropy_with_logits(questions(image, text, padding).float(), torch.ones(2, 7))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert sum(a != float(p.detach().sum()) for a, p in zip(before, questions.parameters(), strict=True)) > 30
assert not any(torch.equal(a, b) for a, b in zip(average.head.parameters(), questions.head.parameters(), strict=True))
retrieval = Retrieval(get_config())
assert retrieval(image, text, padding).shape == (2, 2) and retrieval(text=text)[0] is None
file = io.BytesIO()
torch.save({"model": retrieval.state_dict()}, file)
file.seek(0)
larger = Retrieval(get_config(img_size=2 * SIDE))
left = larger.load_state_dict(enlarge(torch.load(file)["model"], larger), strict=True)
assert larger(torch.randn(2, 3, 64, 64))[0].shape == (2, WIDTH)
retrieval.load_state_dict(copy.deepcopy(retrieval).half().state_dict())
print("fine-tuned")
