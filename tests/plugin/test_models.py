"""Every registered model of ours: its flags, its size, its errors. Walks fairseq's registry."""

import argparse
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY, build_model

import torchscale_fairseq.models
from torchscale_fairseq.core.config import EncoderDecoderConfig
from torchscale_fairseq.models._options import FROM_TASK, core_config, flag_fields

OURS = sorted(name for name, cls in MODEL_REGISTRY.items() if cls.__module__.startswith("torchscale_fairseq"))
TRANSLATION = [n for n in OURS if issubclass(MODEL_REGISTRY[n], torchscale_fairseq.models.translation.TranslationModel)]
WORDS = 1000


def dictionary(words: int = WORDS) -> Dictionary:
    result = Dictionary()
    for i in range(words - len(result)):
        result.add_symbol(f"w{i}")
    return result


def task(source: Dictionary | None = None, target: Dictionary | None = None) -> Any:
    shared = dictionary()
    return SimpleNamespace(source_dictionary=source or shared, target_dictionary=target or shared)


def parse(arch: str, *flags: str) -> argparse.Namespace:
    """What fairseq's command line makes of the flags."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    gen_parser_from_dataclass(parser, MODEL_DATACLASS_REGISTRY[arch]())
    positions = dict.fromkeys(FROM_TASK, 1024)  # flags of the task
    return argparse.Namespace(arch=arch, **vars(parser.parse_args(flags)), **positions)


def config_of(arch: str, *flags: str) -> EncoderDecoderConfig:
    return core_config(parse(arch, *flags), EncoderDecoderConfig, MODEL_REGISTRY[arch].preset, vocab_size=WORDS)


def translation_parameters(c: EncoderDecoderConfig) -> int:
    """Parameters of an encoder-decoder, counted by hand from its config."""

    def ffn(width: int, inner: int) -> int:
        return 2 * width * inner + width + inner + (2 * inner if c.uses_subln else 0)

    def attention(width: int, memory: int) -> int:
        return 2 * (width * width + width) + 2 * (memory * width + width)

    def side(width: int, inner: int, layers: int, *, pre_norm: bool, cross: bool) -> int:
        layer = attention(width, width) + ffn(width, inner) + 2 * 2 * width
        layer += 2 * width if c.uses_subln else 0
        layer += attention(width, c.encoder_embed_dim) + 2 * width if cross else 0
        return layers * layer + (2 * width if pre_norm else 0)

    e, d = c.encoder_embed_dim, c.decoder_embed_dim
    return (
        side(e, c.encoder_ffn_embed_dim, c.encoder_layers, pre_norm=c.encoder_pre_norm, cross=False)
        + side(d, c.decoder_ffn_embed_dim, c.decoder_layers, pre_norm=c.decoder_pre_norm, cross=True)
        + WORDS * (e + 2 * d)  # two embeddings and the output projection
    )


def test_the_issue_names_are_registered() -> None:
    sizes = ("", "_small", "_base", "_large")
    assert {f"mt_{kind}{size}" for kind in ("deepnorm", "magneto") for size in sizes} | {"mt_base"} <= set(OURS)


@pytest.mark.parametrize("arch", TRANSLATION)
def test_parameter_count(arch: str) -> None:
    with torch.device("meta"):
        model = build_model(parse(arch), task())
    assert sum(p.numel() for p in model.parameters()) == translation_parameters(config_of(arch))


@pytest.mark.parametrize("arch", TRANSLATION)
def test_hydra_and_arch_build_the_same_model(arch: str) -> None:
    from omegaconf import OmegaConf

    from_hydra = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[arch]())
    from_hydra._name = arch
    root = OmegaConf.create({"task": dict.fromkeys(FROM_TASK, 1024), "model": from_hydra})
    with torch.device("meta"):
        model = build_model(root.model, task())
    assert model.encoder.config == config_of(arch)


@pytest.mark.parametrize("arch", ["mt_base", "mt_deepnorm"])
@pytest.mark.parametrize("name", [f.name for f in flag_fields(EncoderDecoderConfig) if f.name not in FROM_TASK])
def test_each_flag_sets_its_option(arch: str, name: str) -> None:
    field = next(f for f in flag_fields(EncoderDecoderConfig) if f.name == name)
    default = getattr(config_of(arch), name)
    flag = "--" + name.replace("_", "-")
    if isinstance(field.default, bool) or field.type in (bool, "bool | None") or "bool" in str(field.type):
        flags, expected = [flag], True
    elif field.metadata["choices"]:
        expected = next(c for c in field.metadata["choices"] if c != default)
        flags = [flag, expected]
    elif isinstance(field.default, float):
        flags, expected = [flag, "0.25"], 0.25
    else:
        flags, expected = [flag, "64"], 64
    companions = {
        "rel_pos_buckets": ["--max-rel-pos", "128"],
        "max_rel_pos": ["--rel-pos-buckets", "32"],
        "share_all_embeddings": [],
    }
    contradicts_deepnorm = name in ("subln", "encoder_normalize_before", "decoder_normalize_before")
    if arch == "mt_deepnorm" and contradicts_deepnorm:
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
    fields = {f.name for f in dataclasses.fields(EncoderDecoderConfig)}
    for arch in TRANSLATION:
        assert set(MODEL_REGISTRY[arch].preset) <= fields


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
