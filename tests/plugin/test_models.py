"""Every registered model of ours: its flags, its size, its errors. Walks fairseq's registry."""

import dataclasses
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY, build_model

from tests.plugin.flag_values import (
    flag_of,
    flags,
    is_fixed,
    is_refused_by_deepnorm,
    is_refused_by_retnet,
    words_and_value,
)
from tests.plugin.parameter_counts import parameters
from tests.plugin.registered import (
    OF_THE_TASK,
    WORDS,
    config_class,
    config_of,
    dictionary,
    parse,
    task,
)

OURS = sorted(name for name, cls in MODEL_REGISTRY.items() if cls.__module__.startswith("torchscale_fairseq"))
FLAGS = list(flags())


CHOICES = {"norm": ("layernorm", "rmsnorm"), "moe_clip": ("sparse", "plain"), "bitnet_recipe": ("faq", "paper")}
"""Of options whose help lists them at its end, or within its sentence."""


def test_the_documented_names_are_registered() -> None:
    names = {"mt_base", "lm_base", "mlm_base"}
    four = ("", "_small", "_base", "_large")
    names |= {f"mt_{kind}{size}" for kind in ("deepnorm", "magneto", "xmoe", "swiglu") for size in four}
    sizes = ("", "_small", "_base", "_medium", "_large", "_xl")
    families = ("gpt_deepnorm", "gpt_magneto", "gpt_xpos", "bert_magneto", "bert_deepnorm")
    names |= {family + size for family in families for size in sizes}
    names |= {f"retnet_{size}" for size in ("small", "base", "medium", "xl", "3b", "7b", "13b", "65b")}
    names |= {f"longnet{size}" for size in four}
    names |= {f"bitnet{size}" for size in ("", "_small", "_base", "_700m", "_1_3b", "_3b")}
    names |= {f"beit3{size}" for size in four}
    names |= {f"longvit_{size}" for size in ("tiny", "small", "base")}
    names |= {
        f"vit{kind}_{size}" for kind in ("", "_magneto", "_deepnorm") for size in ("tiny", "small", "base", "large")
    }
    names |= {f"beit_{size}" for size in ("tiny", "small", "base", "large")}
    names |= {f"slide_encoder_{size}" for size in ("tiny", "small", "base")}
    names |= {f"mt_retnet{size}" for size in four}
    speech = ("deepnorm", "magneto", "xmoe", "swiglu", "longnet", "retnet")
    names |= {f"s2t_{kind}{size}" for kind in speech for size in four}
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
def test_hydra_and_arch_build_the_same_model(arch: str) -> None:
    """By their configs; the model that Hydra builds has as many parameters as that of --arch should have."""
    from omegaconf import OmegaConf

    from_hydra = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[arch]())
    from_hydra._name = arch
    root = OmegaConf.create({"task": OF_THE_TASK, "model": from_hydra})
    with torch.device("meta"):
        model = build_model(root.model, task())
    core = next(module for module in model.modules() if hasattr(module, "config"))
    assert core.config == config_of(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters(config_of(arch))


@pytest.mark.parametrize(
    ("arch", "name"), [f for f in FLAGS if not (is_refused_by_retnet(*f) or is_refused_by_deepnorm(*f) or is_fixed(*f))]
)
def test_each_flag_sets_its_option(arch: str, name: str) -> None:
    words, value = words_and_value(arch, name)
    assert getattr(config_of(arch, *words), name) == value


@pytest.mark.parametrize(("arch", "name"), [f for f in FLAGS if is_refused_by_retnet(*f)])
def test_flags_without_a_place_next_to_retention(arch: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{flag_of(name)} has no place in a decoder with retention"):
        config_of(arch, *words_and_value(arch, name)[0])


@pytest.mark.parametrize(("arch", "name"), [f for f in FLAGS if is_refused_by_deepnorm(*f)])
def test_flags_that_contradict_deepnorm(arch: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"deepnorm.*The architecture itself sets deepnorm=True"):
        config_of(arch, *words_and_value(arch, name)[0])


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


def test_help_gives_one_default_and_each_choice() -> None:
    for arch in OURS:
        for field in dataclasses.fields(MODEL_DATACLASS_REGISTRY[arch]):
            text = field.metadata.get("help") or ""
            assert text.count("(default") + text.count("(on in this") <= 1, f"{arch}, {field.name}: {text}"
            for choice in CHOICES.get(field.name, ()):
                assert choice in text, f"{arch}, {field.name}: {text}"


def test_options_page_is_up_to_date() -> None:
    import importlib.util
    from pathlib import Path

    script = Path(__file__).parents[2] / "scripts" / "write_options.py"
    spec = importlib.util.spec_from_file_location("write_options", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.options_md(), "run python scripts/write_options.py"
    assert set(module.presets()) == set(OURS)


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
