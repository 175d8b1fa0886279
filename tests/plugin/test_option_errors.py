"""Every conflict of options, as keyword, flag and override of Hydra: the remedy as printed gets past the error."""

import ast
import pickle
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairseq")

from fairseq import options as fairseq_options
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import torchscale_fairseq.core.config as config_package
from tests.plugin.registered import OF_THE_TASK, WORDS, config_class, config_of, parse
from torchscale_fairseq import Decoder
from torchscale_fairseq.core.config import BEiT3Config, DecoderConfig, EncoderConfig, LongViTConfig, RetNetConfig
from torchscale_fairseq.core.option_error import OptionError, Surface
from torchscale_fairseq.hooks.experts.options import prepare_options
from torchscale_fairseq.hooks.options.effects import check_effects
from torchscale_fairseq.hooks.options.surfaces import Flags, HydraOverrides
from torchscale_fairseq.hooks.sequence_parallel import check_options
from torchscale_fairseq.models._options import core_config

Options = dict[str, Any]
DILATED = {"segment_length": "[4]", "dilated_ratio": "[1]"}
EXPERTS = {"moe_freq": 1, "moe_expert_count": 4}

CONFLICTS: list[tuple[str, Options]] = [
    ("gpt_magneto", {"activation_fn": "tanh"}),
    ("gpt_magneto", {"dropout": 1.5}),
    ("gpt_magneto", {"decoder_layers": 0}),
    ("gpt_magneto", {"deepnorm": True, "subln": True}),
    ("gpt_deepnorm", {"deepnorm": True, "subln": True}),
    ("gpt_magneto", {"rel_pos_buckets": 32}),
    ("gpt_magneto", {"max_rel_pos": 32}),
    ("gpt_magneto", {"rel_pos_buckets": 32, "max_rel_pos": 16}),
    ("gpt_magneto", {"flash_attention": True, "attention_backend": "naive"}),
    ("gpt_magneto", {"decoder_attention_heads": 7}),
    ("mt_magneto", {"encoder_attention_heads": 7}),
    ("gpt_magneto", {"xpos_rel_pos": True, "decoder_embed_dim": 36, "decoder_attention_heads": 12}),
    ("gpt_deepnorm", {"deepnorm": True, "decoder_normalize_before": True}),
    ("gpt_magneto", {"subln": True, "decoder_normalize_before": False}),
    ("gpt_magneto", {"blockwise_causal_window": 5, "xpos_rel_pos": True}),
    ("gpt_magneto", {"blockwise_causal_window": 6}),
    ("gpt_xpos", {"xpos_rel_pos": True, "blockwise_causal_window": 6, **DILATED}),
    ("gpt_magneto", {"segment_length": "[64,128]"}),
    ("gpt_magneto", {"segment_length": "64", "dilated_ratio": "[1]"}),
    ("gpt_magneto", {"rel_pos_buckets": 32, "max_rel_pos": 128, **DILATED}),
    ("mt_magneto", {"share_all_embeddings": True, "decoder_embed_dim": 64}),
    ("gpt_magneto", {"moe_freq": 99, "moe_expert_count": 4}),
    ("gpt_magneto", {"moe_freq": 1}),
    ("gpt_magneto", {"use_xmoe": True}),
    ("gpt_magneto", {"moe_top_k": 3}),
    ("gpt_magneto", {**EXPERTS, "moe_top1_expert": True, "moe_top_k": 2}),
    ("gpt_magneto", {**EXPERTS, "moe_top_k": 9}),
    ("gpt_magneto", {**EXPERTS, "moe_capacity_factor": 0.0}),
    ("gpt_magneto", {**EXPERTS, "moe_eval_capacity_token_fraction": 2.0}),
    ("gpt_magneto", {**EXPERTS, "moe_routing_dim": 8}),
    ("gpt_magneto", {**EXPERTS, "use_xmoe": True, "moe_routing_dim": 8, "torchscale_compatible": True}),
    ("gpt_magneto", {"bitnet_recipe": "paper"}),
    ("gpt_magneto", {"bitnet": "b1", "bitnet_recipe": "paper", "ffn_chunk_size": 64}),
    ("retnet_base", {"decoder_value_embed_dim": 101}),
    ("retnet_base", {"decoder_embed_dim": 6, "decoder_retention_heads": 2}),
    ("retnet_base", {"deepnorm": True}),
    ("mt_retnet", {"deepnorm": True}),
    ("beit3_small", {"share_encoder_input_output_embed": True}),
    ("longvit_tiny", {"img_size": 1000}),
]
CHAINS: list[tuple[str, Options]] = [
    ("gpt_magneto", {"moe_routing_dim": 8}),
    ("gpt_magneto", {"moe_routing_dim": 8, "torchscale_compatible": True}),
    ("gpt_magneto", {"moe_expert_count": 4, "moe_top_k": 9}),
    ("gpt_magneto", {"decoder_moe_freq": 0, "use_xmoe": True}),
    ("gpt_magneto", {"max_rel_pos": 3}),
    ("gpt_magneto", {"rel_pos_buckets": 400}),
    ("gpt_magneto", {"rel_pos_buckets": 2, "max_rel_pos": 200}),
]
"""Each remedy settles these at once."""
UNREAD: list[tuple[str, list[str], str]] = [
    ("gpt_deepnorm", ["--xpos-scale-base", "256"], "xpos_scale_base"),
    ("gpt_deepnorm", ["--moe-clip", "plain"], "moe_clip"),
    ("retnet_base", ["--moe-gating-use-fp32", "--moe-clip", "plain"], "moe_gating_use_fp32"),
    ("mt_deepnorm", ["--moe-expert-dropout", "0.2", "--encoder-moe-freq", "0"], "moe_expert_dropout"),
    ("bert_deepnorm", ["--moe-capacity-factor", "2"], "moe_capacity_factor"),
]
KEYWORDS_ALONE: list[tuple[type, Options]] = [
    (EncoderConfig, {"vocab_size": 0}),
    (RetNetConfig, {"vocab_size": 0}),
    (EncoderConfig, {"multiway": True, **EXPERTS}),
    (DecoderConfig, {"multiway": True}),
    (BEiT3Config, {"multiway": False}),
    (LongViTConfig, {"vocab_size": 40}),
]
"""Of options without a flag."""
EXPERT_CONFLICTS: list[Options] = [
    {"distributed_training.zero_sharding": "os"},
    {"optimization.use_bmuf": True},
    {"distributed_training.ddp_backend": "slowmo"},
    {"common.amp": True},
    {"optimizer": "adafactor"},
]
SEQUENCE_CONFLICTS: list[Options] = [
    {"seq_parallel_size": 2, **DILATED},
    {"seq_parallel": True, "seq_parallel_size": -2, **DILATED},
    {"seq_parallel": True, "decoder_layers": 1, "segment_length": None},
    {"seq_parallel": True},
    {"seq_parallel": True, "seq_parallel_size": 2},
    {"seq_parallel": True, "moe_freq": 1, **DILATED},
    {"seq_parallel": True, "torchscale_compatible": True, **DILATED},
    {"seq_parallel": True, "optimization.use_bmuf": True, **DILATED},
    {"seq_parallel": True, "distributed_training.ddp_backend": "slowmo", **DILATED},
]
LANGUAGE_MODEL = ["--task", "language_modeling", "--arch", "gpt_magneto_small"]
conflicts = pytest.mark.parametrize(
    ("arch", "given"), CONFLICTS, ids=lambda x: "-".join(x) if isinstance(x, dict) else x
)


def check_remedies(attempt: Callable[[list[str]], Any], typed: list[str]) -> OptionError:
    """The error of what was typed; each of its remedies is printed, and typed it gets past the error."""
    with pytest.raises(OptionError) as refused:
        attempt(typed)
    error = refused.value
    remedies = error.possible_remedies()
    assert remedies, str(error)
    for remedy in remedies:
        assert_past(error, lambda words: attempt(words), after(error, remedy, typed))
    return error


def after(error: OptionError, remedy: Options, typed: list[str]) -> list[str]:
    """What is typed once a remedy is followed, in the words of the message."""
    words = list(typed)
    for option, value in remedy.items():
        setting = error.surface.name(option) if value is None else str(error.surface.setting(option, value))
        assert setting in str(error) or "{}" not in error.advice, f"{setting} is not in: {error}"
        words = [word for word in words if not same_option(word, setting)]
        if value is not None:
            words.append(setting)
    return words


def same_option(word: str, other: str) -> bool:
    def bare(text: str) -> str:
        return shlex.split(text)[0].split("=")[0].lstrip("+")

    return bare(word) == bare(other)


def assert_past(error: OptionError, attempt: Callable[[list[str]], Any], typed: list[str]) -> None:
    try:
        attempt(typed)
    except OptionError as later:
        assert (later.option, later.condition) != (error.option, error.condition), str(later)


def as_python(kind: type, typed: list[str]) -> Any:
    return eval(f"kind({', '.join(typed)})", {"kind": kind})


def spelt(surface: Surface, given: Options) -> list[str]:
    return [str(surface.setting(option, value)) for option, value in given.items()]


@conflicts
def test_keywords(arch: str, given: Options) -> None:
    check_remedies(lambda typed: as_python(config_class(arch), typed), spelt(Surface(), given))


@pytest.mark.parametrize(("kind", "given"), KEYWORDS_ALONE)
def test_keywords_without_flags(kind: type, given: Options) -> None:
    check_remedies(lambda typed: as_python(kind, typed), spelt(Surface(), given))


@pytest.mark.parametrize(("arch", "given"), CHAINS)
def test_one_attempt_is_enough(arch: str, given: Options) -> None:
    with pytest.raises(OptionError) as refused:
        config_class(arch)(**given)
    for remedy in refused.value.possible_remedies():
        changed = {**given, **remedy}
        config_class(arch)(**{option: value for option, value in changed.items() if value is not None})


def test_valid_values_of_the_relative_bias_stay() -> None:
    cases: list[tuple[Options, Options]] = [
        ({"max_rel_pos": 32}, {"rel_pos_buckets": 32}),
        ({"rel_pos_buckets": 64}, {"max_rel_pos": 256}),
        ({"rel_pos_buckets": 2, "max_rel_pos": 200}, {"rel_pos_buckets": 32}),
    ]
    for given, remedy in cases:
        with pytest.raises(OptionError) as refused:
            DecoderConfig(**given)
        assert refused.value.remedies[0] == remedy


@pytest.mark.parametrize(("arch", "words", "option"), UNREAD)
def test_options_that_a_model_does_not_read(arch: str, words: list[str], option: str) -> None:
    """They are refused in training alone: trained models load."""

    def attempt(words: list[str]) -> None:
        options = parse(arch, *shlex.split(" ".join(words)))
        options._name = arch
        check_effects(options)

    assert check_remedies(attempt, words_of(words)).option == option
    config_of(arch, *words)


def words_of(flags: list[str]) -> list[str]:
    """Each flag with its value as one."""
    return [word.strip() for word in re.split(r" (?=--)", " ".join(flags))]


@pytest.mark.parametrize("arch", sorted(name for name, cls in MODEL_REGISTRY.items() if hasattr(cls, "preset")))
def test_architectures_read_their_presets(arch: str) -> None:
    options = MODEL_DATACLASS_REGISTRY[arch]()
    options._name = arch
    check_effects(options)


def typed_by_users(arch: str, given: Options) -> Options:
    """Without what the architecture sets itself."""
    preset = MODEL_REGISTRY[arch].preset
    return {option: value for option, value in given.items() if preset.get(option) != value}


@conflicts
def test_flags(arch: str, given: Options) -> None:
    if any(value is False for value in given.values()) or arch == "longvit_tiny":
        pytest.skip("cannot be typed as flags of a model")
    typed = spelt(Flags(), typed_by_users(arch, given))
    check_remedies(lambda words: config_of(arch, *shlex.split(" ".join(words))), typed)


def apply_overrides(root: Any, typed: list[str]) -> Any:
    for override in OverridesParser.create().parse_overrides(shlex.split(" ".join(typed))):
        OmegaConf.update(root, override.key_or_group, override.value())
    return root


@conflicts
def test_hydra(arch: str, given: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fairseq-hydra-train"])
    words = {} if config_class(arch) is LongViTConfig else {"vocab_size": WORDS}

    def attempt(typed: list[str]) -> Any:
        model = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[arch]())
        root = apply_overrides(OmegaConf.create({"task": OF_THE_TASK, "model": model}), typed)
        return core_config(root.model, config_class(arch), MODEL_REGISTRY[arch].preset, **words)

    check_remedies(attempt, spelt(HydraOverrides(), typed_by_users(arch, given)))


def test_every_error_of_the_configs_is_among_them() -> None:
    raised, reached = set(), set()
    for path in Path(config_package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and "Error" in ast.unparse(node) and "TypeError" not in ast.unparse(node):
                raised.add((path.name, node.lineno, node.end_lineno))
    for kind, given in [*((config_class(arch), given) for arch, given in CONFLICTS), *KEYWORDS_ALONE]:
        with pytest.raises(OptionError) as refused:
            kind(**given)
        for frame in traceback.extract_tb(refused.tb):
            name = Path(frame.filename).name
            reached |= {site for site in raised if site[0] == name and site[1] <= frame.lineno <= site[2]}
    assert raised - reached == set()


@pytest.mark.parametrize("given", EXPERT_CONFLICTS[:1], ids=lambda given: next(iter(given)))
def test_experts_beside_flags_of_fairseq(given: Options) -> None:
    def attempt(words: list[str]) -> None:
        parser = fairseq_options.get_training_parser()
        args = fairseq_options.parse_args_and_arch(parser, ["data", *LANGUAGE_MODEL, *shlex.split(" ".join(words))])
        prepare_options(convert_namespace_to_omegaconf(args), several_processes=True)

    check_remedies(attempt, spelt(Flags(), given))


@pytest.mark.parametrize("given", EXPERT_CONFLICTS, ids=lambda given: next(iter(given)))
def test_experts_beside_overrides_of_fairseq(given: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fairseq-hydra-train"])

    def attempt(words: list[str]) -> None:
        root = OmegaConf.structured(FairseqConfig())
        root.optimizer = {"_name": "adam"}
        apply_overrides(root, words)
        prepare_options(root, several_processes=True)

    check_remedies(attempt, spelt(HydraOverrides(), given))


@pytest.mark.parametrize("surface", [Flags(), HydraOverrides()], ids=["flags", "hydra"])
@pytest.mark.parametrize("given", SEQUENCE_CONFLICTS, ids=lambda given: "-".join(given))
def test_distributed_sequences(given: Options, surface: Surface, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(surface, HydraOverrides):
        monkeypatch.setattr(sys, "argv", ["fairseq-hydra-train"])

    def attempt(options: Options) -> None:
        branches: dict[str, Any] = {name: value for name, value in options.items() if name in DILATED}
        branches = DILATED if options.get("arch") == "longnet" else branches
        experts: dict[str, Any] = {"moe_freq": 1, "moe_expert_count": 2} if options.get("moe_freq") else {}
        model = Decoder(DecoderConfig(decoder_layers=1, **branches, **experts))
        check_options(sections(options), model)

    with pytest.raises(OptionError) as refused:
        attempt(given)
    error = refused.value
    assert error.possible_remedies()
    for remedy in error.possible_remedies():
        after(error, remedy, [])
        changed = {**given, **remedy}
        attempt({option: value for option, value in changed.items() if value is not None})


def sections(options: Options) -> Any:
    """fairseq's configuration as far as sequences go."""
    cfg: dict[str, dict[str, Any]] = {
        "model": {"_name": "longnet", "seq_parallel": False, "seq_parallel_size": 0, "torchscale_compatible": False},
        "distributed_training": {"ddp_backend": "pytorch_ddp"},
        "optimization": {"use_bmuf": False},
    }
    for option, value in options.items():
        section, _, name = option.rpartition(".")
        cfg[section or "model"][name] = value
    return OmegaConf.create(cfg)


def test_errors_are_pickled_with_their_surface() -> None:
    """Processes that fairseq starts hand their errors to it."""
    with pytest.raises(OptionError) as refused:
        config_of("gpt_deepnorm", "--subln")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    assert str(refused.value) == (
        "--deepnorm and --subln cannot both be on: they place the norms differently; drop --subln. The architecture "
        "itself sets deepnorm=True."
    )
