"""--layer-decay: a learning rate for each layer, in every family of models."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("fairseq")

from fairseq.models import MODEL_DATACLASS_REGISTRY, build_model
from fairseq.optim.adam import Adam
from omegaconf import OmegaConf

from tests.helpers import assert_close
from tests.plugin.registered import OF_THE_TASK, task
from tests.plugin.trainers import make_trainer, update
from torchscale_fairseq.core.architectures.layer_decay import learning_rate_factors
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.model_options import ModelOptions
from torchscale_fairseq.hooks.training.layer_decay import check_layer_decay, scale_steps
from torchscale_fairseq.optim.fused_adam_torch import FusedAdam

LOWEST, FIRST, SECOND, TOP = 0.5**3, 0.5**2, 0.5, 1.0
"""Of embeddings, two layers and all else."""
OF_IMAGES = {
    "model.pos_embed": LOWEST,
    "model.patch_embed.": LOWEST,
    "model.encoder.layers.0.": FIRST,
    "model.encoder.layers.1.": SECOND,
    "fc_norm.": TOP,
    "head.": TOP,
}
FACTORS = {
    "vit_tiny": OF_IMAGES,
    "longvit_tiny": OF_IMAGES,
    "beit3_small": {
        "core.text_embed.": LOWEST,
        "core.vision_embed.": LOWEST,
        "core.encoder.embed_positions.": LOWEST,
        "core.encoder.layers.0.": FIRST,
        "core.encoder.layers.1.": SECOND,
        "core.encoder.layer_norm.": TOP,
        "word_head.": TOP,
        "patch_head.": TOP,
        "match_head.": TOP,
    },
    "bert_magneto_small": {
        "encoder.embed_tokens.": LOWEST,
        "encoder.embed_positions.": LOWEST,
        "encoder.layernorm_embedding.": LOWEST,
        "encoder.layers.0.": FIRST,
        "encoder.layers.1.": SECOND,
        "encoder.layer_norm.": TOP,
        "encoder.output_projection.": TOP,
    },
    "mt_deepnorm_small": {
        "encoder.embed_tokens.": LOWEST,
        "encoder.layers.0.": FIRST,
        "encoder.layers.1.": SECOND,
        "decoder.": TOP,
    },
    "s2t_magneto_small": {
        "encoder.subsample.": LOWEST,
        "encoder.layers.0.": FIRST,
        "encoder.layers.1.": SECOND,
        "encoder.layer_norm.": TOP,
        "decoder.": TOP,
    },
    "gpt_magneto_small": {
        "decoder.embed_tokens.": LOWEST,
        "decoder.layers.0.": FIRST,
        "decoder.layers.1.": SECOND,
        "decoder.layer_norm.": TOP,
        "decoder.output_projection.": TOP,
    },
}
DECAY = ["--layer-decay", "0.5", "--decoder-layers", "2"]


def two_layers(arch: str, **options: Any) -> Any:
    """A model of two layers per side, without values."""
    cfg = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[arch](**options))
    cfg._name = arch
    for side in ("encoder_layers", "decoder_layers"):
        if side in cfg:
            cfg[side] = 2
    with torch.device("meta"):
        return build_model(OmegaConf.create({"task": OF_THE_TASK, "model": cfg}).model, task())


@pytest.mark.parametrize("arch", FACTORS)
def test_the_factor_of_each_parameter(arch: str) -> None:
    model = two_layers(arch)
    found = learning_rate_factors(model, 0.5)
    for (name, _), factor in zip(model.named_parameters(), found, strict=True):
        assert [factor] == [value for start, value in FACTORS[arch].items() if name.startswith(start)], name


def test_a_frozen_parameter_has_no_factor_and_a_tied_one_the_embeddings() -> None:
    model = two_layers("mt_deepnorm_small", share_all_embeddings=True)
    names = [name for name, _ in model.named_parameters()]
    assert "decoder.embed_tokens.weight" not in names
    assert learning_rate_factors(model, 0.5)[names.index("encoder.embed_tokens.weight")] == LOWEST
    model.encoder.requires_grad_(False)
    assert set(learning_rate_factors(model, 0.5)) == {TOP}
    with pytest.raises(ValueError, match="Linear has no encoder or decoder of this package"):
        learning_rate_factors(nn.Linear(1, 1), 0.5)


@pytest.mark.parametrize("make", [Adam, FusedAdam])
def test_updates_are_those_of_groups_with_learning_rates_of_their_own(make: Any) -> None:
    factors = [1.0, 0.25, 1.0, 0.5]
    torch.manual_seed(0)
    own = [nn.Parameter(torch.randn(3, 2)) for _ in factors]
    other = deepcopy(own)
    expected = make([{"params": [p], "lr": 0.1 * f} for p, f in zip(other, factors, strict=True)], weight_decay=0.1)
    optimizer = make(own, lr=0.1, weight_decay=0.1)
    scale_steps(optimizer, factors)
    for _ in range(3):
        for a, b in zip(own, other, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        expected.step()
        (group,) = optimizer.param_groups
        assert group["lr"] == 0.1 and group["params"] == own
    for a, b in zip(own, other, strict=True):
        assert_close(a, b, "parity_exact")


def test_what_a_step_notes_in_a_group_is_kept() -> None:
    """Once there has been an SGD, torch calls the hooks of a class that extends it for both steps."""
    torch.optim.SGD([nn.Parameter(torch.ones(1))])

    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["step"] = group.get("step", 0) + 1
            return super().step(closure)

    optimizer = Counting([nn.Parameter(torch.ones(1)) for _ in range(2)], lr=0.1)
    scale_steps(optimizer, [1.0, 0.5])
    for _ in range(3):
        optimizer.step()
    assert optimizer.param_groups[0]["step"] == 3


@pytest.mark.parametrize("precision", [[], ["--bf16"]])
def test_a_resumed_run_trains_and_logs_as_it_would_have(
    precision: list[str], language_data: Path, tmp_path: Path
) -> None:
    flags = ["--optimizer", "adam", "--lr", "3e-3", *DECAY, *precision]
    straight = make_trainer(language_data, tmp_path, *flags)
    for seed in range(3):
        update(straight, seed)
    assert straight.get_lr() == 3e-3
    assert len(straight.optimizer.state_dict()["param_groups"]) == 1

    first, second = (make_trainer(language_data, tmp_path, *flags) for _ in range(2))
    for seed in range(2):
        update(first, seed)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(deepcopy(first.optimizer.state_dict()))
    copies = [t.optimizer.fp32_params for t in (first, second) if precision]
    for mine, theirs in zip(*reversed(copies), strict=True) if copies else ():
        mine.data.copy_(theirs.data)
    second.set_num_updates(2)
    update(second, 2)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_a_lower_layer_moves_less(language_data: Path, tmp_path: Path) -> None:
    """One update by plain gradients: each parameter's change is its factor times that without decay."""
    flags = ["--optimizer", "sgd", "--lr", "0.5", "--clip-norm", "0", "--decoder-layers", "2"]
    plain, decayed = (make_trainer(language_data, tmp_path, *flags, *more) for more in ([], DECAY))
    before = deepcopy(plain.model.state_dict())
    update(plain, 0)
    update(decayed, 0)
    for name, start in FACTORS["gpt_magneto_small"].items():
        for key in (key for key in before if key.startswith(name)):
            change = plain.model.state_dict()[key] - before[key]
            assert_close(decayed.model.state_dict()[key] - before[key], start * change, "float32")


@pytest.mark.parametrize(
    ("model", "common", "message"),
    [
        ({"layer_decay": 1.5}, {}, r"--layer-decay \(1.5\) must be above 0 and at most 1; give --layer-decay 0.65"),
        ({}, {"fp16": True}, "--layer-decay 0.5 cannot be combined with --fp16.*add --fp16-no-flatten-grads"),
        ({}, {"zero_sharding": "os"}, "cannot be combined with --zero-sharding os"),
        ({}, {"_name": "composite"}, "cannot be combined with --optimizer composite"),
        ({}, {"relative_step": True}, "cannot be combined with --relative-step"),
    ],
)
def test_refusals(model: dict[str, Any], common: dict[str, Any], message: str) -> None:
    options = {"fp16": False, "memory_efficient_fp16": False, "fp16_no_flatten_grads": False, "_name": "adam"}
    every = SimpleNamespace(**{**options, "zero_sharding": "none", "ddp_backend": "pytorch_ddp", **common})
    named = ModelOptions(**{"layer_decay": 0.5, **model})
    with pytest.raises(OptionError, match=message):
        check_layer_decay(SimpleNamespace(model=named, common=every, distributed_training=every, optimizer=every))
