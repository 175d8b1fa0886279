"""A language model in float64 and sentences for it, without a command."""

from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY


def language_model(seed: int = 0) -> tuple[Any, Any]:
    """A small model in float64 and its task, of 24 words."""
    dictionary = Dictionary()
    for index in range(20):
        dictionary.add_symbol(f"w{index}")
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    sizes = {"decoder_embed_dim": 8, "decoder_ffn_embed_dim": 16, "decoder_attention_heads": 2, "decoder_layers": 1}
    options = MODEL_DATACLASS_REGISTRY["gpt_deepnorm_small"](**sizes, dropout=0.0, max_target_positions=16)
    torch.manual_seed(seed)
    return MODEL_REGISTRY["gpt_deepnorm_small"].build_model(options, task).double(), task


def batch(seed: int = 0) -> dict[str, Any]:
    """Three sentences of up to seven words."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 24, (3, 8), generator=generator)
    tokens[0, 5:] = 1
    inputs, target = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    lengths = inputs.ne(1).sum(1)
    return {
        "net_input": {"src_tokens": inputs, "src_lengths": lengths},
        "target": target,
        "ntokens": int(target.ne(1).sum()),
    }
