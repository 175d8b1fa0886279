"""Writes a second set of vectors with this package's own code: other shapes and options under the official names.

It shows that the parity tests know nothing of the official set's shapes (``test_other_vectors.py``), not that the
arithmetic is right. ``python -m tests.parity.other_vectors FOLDER``
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity import fairseq_models, initial_values, models
from tests.parity.experts import build_layer
from tests.parity.longnet import dilated_layer
from tests.parity.vectors import Case, gradients_by_name, loss_of, write_case
from torchscale_fairseq.core.layers.relative_position import RelativePositionBias, relative_position_bucket

VOCABULARY, WIDTH, LENGTH, BATCH = 41, 20, 21, 3
WIDTHS = {"embed_dim": WIDTH, "attention_heads": 5, "ffn_embed_dim": 36, "layers": 3}
DECODER = {"vocab_size": VOCABULARY, **{f"decoder_{name}": value for name, value in WIDTHS.items()}}
ENCODER = {"vocab_size": VOCABULARY, **{f"encoder_{name}": value for name, value in WIDTHS.items()}}
RETNET = {**DECODER, "decoder_value_embed_dim": 28, "decoder_retention_heads": 2, "recurrent_chunk_size": 6}
RETNET.pop("decoder_attention_heads")
SEGMENTS = {"segment_length": "[6,12]", "dilated_ratio": "[1,3]"}
EXPERTS = {
    "moe_freq": 3,
    "moe_expert_count": 3,
    "moe_second_expert_policy": "all",
    "moe_eval_capacity_token_fraction": 0.6,
}
FACTS = {"embed_tokens": [VOCABULARY, WIDTH, 1], "embed_positions": [LENGTH + 4, WIDTH]}
Outputs = Callable[[Case, nn.Module], dict[str, Tensor]]


def padded_tokens() -> tuple[Tensor, Tensor]:
    """Tokens, and the mask of the last row's padding."""
    tokens = torch.randint(4, VOCABULARY, (BATCH, LENGTH))
    tokens[-1, -4:] = 1
    return tokens, tokens.eq(1)


def write_model(
    folder: Path,
    name: str,
    meta: dict[str, Any],
    inputs: dict[str, Tensor],
    outputs: Outputs,
    *,
    main: str,
    build: Callable[[dict[str, Any]], nn.Module] = models.build,
) -> None:
    """Write a model's parameters, outputs, and the loss and gradients of its output ``main``."""
    meta = {"extra": {}, "config": {}, **meta}
    model = build(meta).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    tensors = {f"param/{k}": v for k, v in model.state_dict().items()} | {f"in/{k}": v for k, v in inputs.items()}
    path = folder / f"{name}.safetensors"
    found = outputs(write_case(path, meta, tensors), model)
    keep = inputs.get("loss_keep", torch.ones(found[main].shape[:2], dtype=torch.bool))
    tensors |= {"in/loss_keep": keep, "in/loss_target": torch.randn_like(found[main])}
    balance = found.get("l_aux")
    loss = loss_of(write_case(path, meta, tensors), found[main], None if balance is None else balance.sum())
    loss.backward()
    tensors |= {f"out/{k}": v for k, v in found.items()} | {"out/loss": loss.reshape(1)}
    tensors |= {f"grad/{k}": v for k, v in gradients_by_name(model).items() if f"param/{k}" in tensors}
    write_case(path, meta, tensors)


def transformers(folder: Path) -> None:
    """Encoders, decoders and both, pre-norm without SubLN, dense and dilated."""
    tokens, padding = padded_tokens()
    plain = {"subln": False, "activation_fn": "relu"}
    source = {"src_tokens": tokens, "encoder_padding_mask": padding, "loss_keep": ~padding}
    target = {"prev_output_tokens": torch.randint(4, VOCABULARY, (BATCH, LENGTH - 2))}

    def described(cls: str, **kwargs: Any) -> dict[str, Any]:
        branches = {k: json.loads(kwargs[k]) for k in SEGMENTS if k in kwargs}
        return {"config_kwargs": kwargs, "config": {**kwargs, **branches}, "build": {"cls": cls, **FACTS}}

    encoder = described("Encoder", **ENCODER, **plain)
    write_model(folder, "enc_preln", encoder, source, models.encoder_outputs, main="encoder_out")
    decoder = described("Decoder", **DECODER, **plain, rel_pos_buckets=12, max_rel_pos=20)
    write_model(folder, "dec_relpos", decoder, target, models.decoder_outputs, main="logits")
    both = described("EncoderDecoder", **{**ENCODER, **DECODER, "encoder_layers": 2}, **plain)
    inputs = {**target, "src_tokens": tokens, "encoder_padding_mask": padding}
    write_model(folder, "ed_subln", both, inputs, models.encoder_decoder_outputs, main="logits")
    dilated = described("LongNetEncoder", **ENCODER, **SEGMENTS, **plain)
    write_model(folder, "ln_enc", dilated, source, models.encoder_outputs, main="encoder_out")
    shifted = described("LongNetDecoder", **DECODER, **{**SEGMENTS, "segment_length": "[6,10]"})
    write_model(folder, "ln_dec_misaligned", shifted, target, models.decoder_outputs, main="logits")


def retnets(folder: Path) -> None:
    """RetNet in three layers; the chunkwise form is ours, so that it agrees."""
    meta = {"config_kwargs": RETNET, "build": {"cls": "RetNetDecoder", **FACTS}}
    meta["extra"] = {"forms": {"grad_chunkwise_vs_parallel_worst_rel": 0.0}}
    inputs = {"prev_output_tokens": torch.randint(4, VOCABULARY, (BATCH, LENGTH))}

    def outputs(case: Case, model: Any) -> dict[str, Tensor]:
        found = models.decoder_outputs(case, model)
        logits = found.pop("logits")
        for clamped in (False, True):
            for layer in model.layers:
                layer.retention.clamp_scores = clamped
            found.setdefault("logits_recurrent", model(case["in/prev_output_tokens"])[0])
        return {**found, "logits_parallel": logits, "logits_chunkwise": logits}

    write_model(folder, "ret_default", meta, inputs, outputs, main="logits_parallel")


def mixtures(folder: Path) -> None:
    """A layer with experts, and a decoder with one such layer."""
    config = {**EXPERTS, "activation_fn": "relu", "layernorm_eps": 1e-3, "use_xmoe": False}
    config |= {"moe_normalize_gate_prob_before_dropping": True, "moe_gating_use_fp32": False}
    loss = {"loss": "mean((out-target)^2) + 0.25*sum(l_aux)"}
    facts = {"cls": "MOELayer", "gate": "Top1Gate", "embed_dim": WIDTH, "ffn_dim": 12}
    layer = {"config": config, "build": facts, "extra": loss}

    def layer_outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
        y, report = model(case["in/x"], None)
        return {
            "y": y,
            "l_aux": report.balance_loss.reshape(1),
            "metadata.entropy_gating": report.statistics["entropy"].reshape(1),
        }

    x, plain = {"x": torch.randn(BATCH, LENGTH, WIDTH)}, partial(build_layer, normed=False)
    write_model(folder, "moe_layer_top1", layer, x, layer_outputs, main="y", build=plain)

    def outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
        logits, extra = model(case["in/prev_output_tokens"])
        l_aux = torch.stack([loss for loss in extra["l_aux"] if loss is not None])
        steps = models.incremental_logits(model, case["in/prev_output_tokens"])
        return {"logits": logits, "l_aux": l_aux, "incremental_logits": steps}

    decoder = {"config_kwargs": {**DECODER, **EXPERTS}, "build": {"cls": "Decoder", **FACTS}, "extra": loss}
    inputs = {"prev_output_tokens": torch.randint(4, VOCABULARY, (BATCH, LENGTH))}
    write_model(folder, "dec_moe", decoder, inputs, outputs, main="logits")


def wrappers(folder: Path) -> None:
    """A language model of fairseq's registry."""
    options = {name: value for name, value in DECODER.items() if name != "vocab_size"}
    kwargs = {
        **options,
        "tokens_per_sample": LENGTH,
        "max_target_positions": LENGTH + 3,
        "subln": False,
        "dropout": 0.0,
    }
    meta = {"config_kwargs": kwargs, "build": {"cls": "LanguageModel", "embed_tokens": FACTS["embed_tokens"]}}
    tokens, padding = padded_tokens()

    def outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
        return {"logits": model(case["in/src_tokens"])[0]}

    inputs = {"src_tokens": tokens, "loss_keep": ~padding}
    write_model(folder, "fs_lm", meta, inputs, outputs, main="logits", build=fairseq_models.build)


def operators(folder: Path) -> None:
    """Dilated attention without an inner norm, relative bias, gradient clipping, initial values."""
    linear = {f"param/{p}_proj.weight": torch.randn(WIDTH, WIDTH) / 4 for p in ("q", "k", "v", "out")}
    linear |= {name.replace("weight", "bias"): torch.randn(WIDTH) for name in linear}
    config = {"segment_length": [6, 12], "dilated_ratio": [1, 3], "layernorm_eps": 1e-5}
    tensors = {**linear, "in/x": torch.randn(2, LENGTH, WIDTH), "in/loss_target": torch.randn(2, LENGTH, WIDTH)}
    path = folder / "comp_dilated.safetensors"
    meta = {"config": config, "build": {"heads": 4}}
    case = write_case(path, meta, tensors)
    for name, causal in (("causal", True), ("full", False)):
        tensors[f"out/y_{name}"] = dilated_layer(case, case["in/x"], case.group("param/"), causal=causal)
    write_case(path, meta, tensors)

    settings: dict[str, Any] = {"bidirectional": False, "num_buckets": 10, "max_distance": 40}
    distances, bias = torch.arange(-50, 50), RelativePositionBias(2, **settings)
    nn.init.normal_(bias.relative_attention_bias.weight)
    found = {"bucket": relative_position_bucket(distances, **settings)}
    found["bias_q5_k6"] = bias(torch.arange(5)[None], torch.arange(6)[None])[0].repeat(3, 1, 1)
    found["bias_q1_k6_step3"] = bias(torch.tensor([[3]]), torch.arange(6)[None])[0]
    tensors = {f"out/b10_d40_uni.{name}": value for name, value in found.items()}
    tensors["param/b10_d40_uni.relative_attention_bias.weight"] = bias.relative_attention_bias.weight
    write_case(folder / "pos_relbias.safetensors", {}, {**tensors, "in/b10_d40_uni.relative_position": distances})


def clipped(folder: Path) -> None:
    """Gradients of one dense and two expert parameters, in a mixture of five experts."""
    gradients = {"dense": torch.randn(7), "first": torch.randn(3, 2), "second": torch.randn(2)}
    flags = {"dense": "normal", "first": "expert", "second": "expert"}
    squares = {name: gradient.square().sum() for name, gradient in gradients.items()}
    norm = (squares["dense"] + (squares["first"] + squares["second"]) / 5).sqrt()
    factor = 0.3 / (norm.item() + 1e-6)
    tensors = {f"in/grad.{name}": gradient for name, gradient in gradients.items()}
    tensors |= {"out/experts5.total_norm": norm.reshape(1), "out/experts5.clipped.dense": factor * gradients["dense"]}
    results = {
        f"world1.experts5.max{limit}.all": {"total_norm": norm.item(), "factor": {"dense": value}}
        for limit, value in (("0.3", factor), ("50", 1.0))
    }
    write_case(folder / "sparse_clip.safetensors", {"extra": {"flags": flags, "results": results}}, tensors)


def initial(folder: Path) -> None:
    """Initial values of an encoder of two layers, and the scaling of DeepNorm."""
    sizes = initial_values.Sizes(embed=96, ffn=160, value=96)
    (encoder,) = initial_values.sides("encoder", (2, 2), sizes, subln=True).values()
    rows = []
    for block, param in (("self", "q_proj"), ("self", "v_proj"), ("ffn", "fc1")):
        module = {"self": "self_attn", "ffn": "ffn"}[block]
        values = torch.stack([layer.get_parameter(f"{module}.{param}.weight") for layer in encoder.layers])
        row = {"arch": "encoder", "side": "encoder", "layers": 2, "mode": "subln", "block": block, "param": param}
        measured = {"std": values.std().item(), "abs_max": values.abs().max().item(), "elements": values.numel()}
        rows.append({**row, "tensor": "weight", **measured})
    content = {"rows": rows, "alpha": {}, "init_multiplier_exact": {}}
    (folder / "init_stats.json").write_text(json.dumps(content))


def write(folder: Path) -> None:
    """Write the whole set."""
    torch.manual_seed(3)
    for part in (transformers, retnets, mixtures, wrappers, operators, clipped, initial):
        part(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
