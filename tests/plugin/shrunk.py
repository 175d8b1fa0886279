"""Any registered model, made tiny by its own flags."""

import dataclasses

from fairseq.models import MODEL_DATACLASS_REGISTRY

import torchscale_fairseq.models  # noqa: F401 - registers them

EXPERTS = ["--moe-freq", "1", "--moe-expert-count", "4"]
_SMALL = {"_ffn_embed_dim": 32, "_embed_dim": 16, "_attention_heads": 2, "_retention_heads": 2, "_layers": 1}


def shrunk(arch: str) -> list[str]:
    """Flags for a model of one narrow layer per side, with four experts if it has experts."""
    flags = ["--arch", arch]
    for field in dataclasses.fields(MODEL_DATACLASS_REGISTRY[arch]):
        for ending, value in _SMALL.items():
            if field.name.endswith(ending) and field.default is not None:
                flags += [f"--{field.name.replace('_', '-')}", str(value)]
                break
    if MODEL_DATACLASS_REGISTRY[arch]().moe_freq:
        flags += EXPERTS
    return flags
