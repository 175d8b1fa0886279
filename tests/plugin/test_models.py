"""Every registered model of ours: its flags, its size, its errors. Walks fairseq's registry."""

import dataclasses
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY, build_model

from tests.plugin.registered import (
    CLASSES,
    OF_THE_TASK,
    WORDS,
    config_class,
    config_of,
    dictionary,
    parse,
    parser_of,
    task,
)
from torchscale_fairseq.core.config import (
    BEiT3Config,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    LongViTConfig,
    RetNetConfig,
    RetNetEncoderDecoderConfig,
    SlideEncoderConfig,
)
from torchscale_fairseq.models._options import flag_fields

OURS = sorted(name for name, cls in MODEL_REGISTRY.items() if cls.__module__.startswith("torchscale_fairseq"))
LANGUAGE_CONFIGS = (DecoderConfig, RetNetConfig)


def parameters(c: Any) -> int:
    """Parameters of a model, counted by hand from its config."""
    retnet = isinstance(c, RetNetConfig)  # whose norms and feed-forward networks are of one kind
    norm = 1 if retnet or c.norm == "rmsnorm" else 2
    gated, subln, ways = retnet or c.gated_ffn, not retnet and c.uses_subln, 1 if retnet else 1 + c.multiway

    def ffn(width: int, inner: int) -> int:
        if gated:
            return 3 * width * inner
        return 2 * width * inner + width + inner + (2 * inner if subln else 0)

    def attention(width: int, memory: int) -> int:
        if c.bitnet:
            return 2 * width * width + 2 * memory * width
        return 2 * (width * width + width) + 2 * (memory * width + width)

    def norms_of_a_layer(width: int, inner: int) -> int:
        if c.bitnet:  # one in front of each linear layer, and none in front of the sublayer
            return norm * (4 * width + 2 * width + inner)
        return 2 * norm * width

    def side(width: int, inner: int, layers: int, *, pre_norm: bool, cross: bool, mixing: int | None = None) -> int:
        layer = (
            (attention(width, width) if mixing is None else mixing)
            + ways * ffn(width, inner)
            + norms_of_a_layer(width, inner)
        )
        layer += 2 * width if subln else 0
        layer += attention(width, c.encoder_embed_dim) + norm * width if cross else 0
        mixed = layers // c.moe_freq if c.moe_freq else 0
        assert c.use_xmoe or not mixed
        return layers * layer + mixed * more_in_a_mixture(width, inner) + (norm * width if pre_norm else 0)

    def more_in_a_mixture(width: int, inner: int) -> int:
        experts, dim = c.moe_expert_count, max(c.moe_expert_count // 2, 4)
        return (experts - 1) * ffn(width, inner) + width * dim + experts * dim + 1

    total = 0
    if not isinstance(c, LANGUAGE_CONFIGS):
        e = c.encoder_embed_dim
        total += side(e, c.encoder_ffn_embed_dim, c.encoder_layers, pre_norm=c.encoder_pre_norm, cross=False)
        total += 0 if isinstance(c, (LongViTConfig, SlideEncoderConfig)) else WORDS * e
        total += (1024 + 2) * e if c.encoder_learned_pos else 0
        total += 2 * e if c.layernorm_embedding else 0
    if isinstance(c, BEiT3Config):
        patch = 3 * c.patch_size**2
        total += (1024 + 2) * e + (c.num_patches + 1 + 2) * e + patch * e + e + 2 * e  # positions, patches, two tokens
        total += e * patch + patch + 2 * e + 2  # the heads of patches and of matching
    if isinstance(c, LongViTConfig):
        total += c.num_patches * e + 3 * c.patch_size**2 * e + e  # positions and patches
        total += 2 * e + e * CLASSES + CLASSES - 2 * e  # the head, with its norm in the place of the encoder's
    elif isinstance(c, SlideEncoderConfig):
        total += 1536 * e + e + e + 2 * e + e * CLASSES + CLASSES  # tiles, class token, norm and head
    elif isinstance(c, EncoderConfig):
        total += e * e + e + 2 * e + WORDS  # the head, whose vectors are the embedding's
    else:
        d = c.decoder_embed_dim
        cross = isinstance(c, EncoderDecoderConfig)
        retains = isinstance(c, (RetNetConfig, RetNetEncoderDecoderConfig))
        total += side(
            d,
            c.decoder_ffn_embed_dim,
            c.decoder_layers,
            pre_norm=c.decoder_pre_norm,
            cross=cross,
            mixing=2 * d * d + 3 * d * c.decoder_value_embed_dim if retains else None,
        )
        total += 2 * WORDS * d  # embedding and output projection
    return total


def test_the_documented_names_are_registered() -> None:
    names = {"mt_base", "lm_base", "mlm_base"}
    kinds = ("deepnorm", "magneto", "xmoe", "swiglu")
    names |= {f"mt_{kind}{size}" for kind in kinds for size in ("", "_small", "_base", "_large")}
    sizes = ("", "_small", "_base", "_medium", "_large", "_xl")
    families = ("gpt_deepnorm", "gpt_magneto", "gpt_xpos", "bert_magneto", "bert_deepnorm")
    names |= {family + size for family in families for size in sizes}
    names |= {f"retnet_{size}" for size in ("small", "base", "medium", "xl", "3b", "7b", "13b", "65b")}
    names |= {f"longnet{size}" for size in ("", "_small", "_base", "_large")}
    names |= {f"bitnet{size}" for size in ("", "_small", "_base", "_700m", "_1_3b", "_3b")}
    names |= {f"beit3{size}" for size in ("", "_small", "_base", "_large")}
    names |= {f"longvit_{size}" for size in ("tiny", "small", "base")}
    names |= {f"slide_encoder_{size}" for size in ("tiny", "small", "base")}
    names |= {f"mt_retnet{size}" for size in ("", "_small", "_base", "_large")}
    assert names == set(OURS)


@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        ("gpt_magneto", 125),
        ("gpt_magneto_medium", 350),
        ("gpt_magneto_large", 760),
        ("gpt_magneto_xl", 1300),
        ("bert_magneto", 110),
        ("bert_magneto_large", 340),
        ("bert_magneto_xl", 1300),
        ("retnet_xl", 1300),
        ("retnet_3b", 2700),
        ("retnet_7b", 6700),
        ("retnet_13b", 13000),
    ],
)
def test_sizes_are_the_papers(arch: str, millions: int) -> None:
    """To 5 %, with the papers' vocabularies and one matrix for embedding and output projection."""
    config = config_of(arch)
    side, vocabulary = ("encoder", 30522) if arch.startswith("bert") else ("decoder", 50257)
    width = getattr(config, f"{side}_embed_dim")
    layers = parameters(config) - WORDS * width * (2 if side == "decoder" else 1)
    assert layers + vocabulary * width == pytest.approx(millions * 1e6, rel=0.05)


@pytest.mark.parametrize("arch", OURS)
def test_parameter_count(arch: str) -> None:
    with torch.device("meta"):
        model = build_model(parse(arch), task())
    assert sum(p.numel() for p in model.parameters()) == parameters(config_of(arch))


@pytest.mark.parametrize("arch", OURS)
def test_hydra_and_arch_build_the_same_model(arch: str) -> None:
    from omegaconf import OmegaConf

    from_hydra = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[arch]())
    from_hydra._name = arch
    root = OmegaConf.create({"task": OF_THE_TASK, "model": from_hydra})
    with torch.device("meta"):
        model = build_model(root.model, task())
    core = next(module for module in model.modules() if hasattr(module, "config"))
    assert core.config == config_of(arch)


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        (arch, field.name)
        for arch in (
            "mt_base",
            "mt_deepnorm",
            "lm_base",
            "gpt_deepnorm",
            "mlm_base",
            "bert_deepnorm",
            "retnet_base",
            "mt_retnet",
        )
        for field in flag_fields(config_class(arch))
        if f"--{field.name.replace('_', '-')}" in parser_of(arch)._option_string_actions
    ],
)
def test_each_flag_sets_its_option(arch: str, name: str) -> None:
    field = next(f for f in flag_fields(config_class(arch)) if f.name == name)
    default = getattr(config_of(arch), name)
    flag = "--" + name.replace("_", "-")
    if isinstance(field.default, bool) or field.type in (bool, "bool | None") or "bool" in str(field.type):
        flags, expected = [flag], True
    elif field.metadata["choices"]:
        expected = next(c for c in field.metadata["choices"] if c != default)
        flags = [flag, expected]
    elif "float" in str(field.type):
        flags, expected = [flag, "0.25"], 0.25
    else:
        expected = 4 if name.endswith(("moe_freq", "top_k")) else 96
        if name.endswith("heads"):
            expected = 16 if "retention" in name else 64
        flags = [flag, str(expected)]
    if name in ("segment_length", "dilated_ratio"):
        flags, expected = [flag, "[96]"], "[96]"
    if "moe" in name and config_of(arch).torchscale_compatible and name == "moe_routing_dim":
        pytest.skip("TorchScale's router has 16 dimensions")
    if "moe" in name:
        needed = {"moe_freq": "2", "moe_expert_count": "8"}
        flags += [word for n, v in needed.items() if n != name for word in (f"--{n.replace('_', '-')}", v)]
        flags += ["--use-xmoe"] if name == "moe_routing_dim" else []
    companions = {
        "bitnet_recipe": ["--bitnet", "b1.58"],
        "bitnet_packed": ["--bitnet", "b1"],
        "rel_pos_buckets": ["--max-rel-pos", "128"],
        "max_rel_pos": ["--rel-pos-buckets", "32"],
        "blockwise_causal_window": ["--xpos-rel-pos"],
        "segment_length": ["--dilated-ratio", "[1]"],
        "dilated_ratio": ["--segment-length", "[64]"],
    }
    contradicts_deepnorm = name in ("subln", "encoder_normalize_before", "decoder_normalize_before")
    if "retnet" in arch and name in ("deepnorm", "subln", "decoder_learned_pos", "blockwise_causal_window"):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} has no place in a decoder with retention"):
            config_of(arch, *flags, *companions.get(name, []))
        return
    if arch.endswith("deepnorm") and contradicts_deepnorm:
        with pytest.raises(ValueError, match=r"deepnorm.*The architecture itself sets deepnorm=True"):
            config_of(arch, *flags)
        return
    assert getattr(config_of(arch, *flags, *companions.get(name, [])), name) == expected


def test_torchscales_second_spelling() -> None:
    assert config_of("mt_base", "--relu-dropout", "0.5").activation_dropout == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder-attention-heads", "7"], r"--encoder-embed-dim \(512\) must be divisible by --encoder-attention"),
        (["--deepnorm", "--subln"], "--deepnorm and --subln cannot both be on"),
        (["--activation-fn", "tanh"], r"--activation-fn \('tanh'\) must be one of"),
        (["--share-all-embeddings", "--decoder-embed-dim", "256"], "--share-all-embeddings needs --encoder-embed-dim"),
    ],
)
def test_errors_are_spelt_as_flags(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("mt_base", *flags)


def test_share_all_embeddings_needs_one_dictionary() -> None:
    with pytest.raises(ValueError, match=r"needs one dictionary .* 1000 and 900 entries; run fairseq-preprocess with"):
        build_model(parse("mt_deepnorm_small", "--share-all-embeddings"), task(dictionary(), dictionary(900)))


def test_pretrained_embeddings(tmp_path: Any) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("2 256\nw0 " + " ".join(["0.5"] * 256) + "\nw9 " + " ".join(["0.25"] * 256) + "\n")
    model = build_model(parse("mt_deepnorm_small", "--encoder-embed-path", str(path)), task())
    words = dictionary()
    assert (model.encoder.embed_tokens.weight[words.index("w0")] == 0.5).all()
    assert (model.encoder.embed_tokens.weight[words.index("w9")] == 0.25).all()
    assert not (model.decoder.embed_tokens.weight[words.index("w0")] == 0.5).any()


def test_presets_are_fields() -> None:
    for arch in OURS:
        assert set(MODEL_REGISTRY[arch].preset) <= {f.name for f in dataclasses.fields(config_class(arch))}


def test_options_page_is_up_to_date() -> None:
    import importlib.util
    from pathlib import Path

    script = Path(__file__).parents[2] / "scripts" / "write_options.py"
    spec = importlib.util.spec_from_file_location("write_options", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.options_md(), "run python scripts/write_options.py"


def test_encoder_output_follows_beam_search() -> None:
    """Beams of a sentence share its row; an ended sentence's row is dropped; mixed rows get one each."""
    encoder = build_model(parse("mt_deepnorm_small"), task()).encoder.eval()
    output = encoder(torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]]))
    states = output["encoder_out"]
    beams = encoder.reorder_encoder_out(output, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert torch.equal(beams["encoder_out"], states)
    left = encoder.reorder_encoder_out(beams, torch.tensor([1, 0, 5, 4]))
    assert torch.equal(left["encoder_out"], states[[0, 2]])
    mixed = encoder.reorder_encoder_out(left, torch.tensor([2, 0, 1, 3]))
    assert torch.equal(mixed["encoder_out"], states[[2, 0, 0, 2]])
    assert mixed["encoder_padding_mask"].shape == (4, 3)
    reversed_rows = encoder.reorder_encoder_out(output, torch.tensor([2, 1, 0]))
    assert torch.equal(reversed_rows["encoder_out"], states[[2, 1, 0]])
