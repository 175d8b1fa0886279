"""Configs: errors name what the user typed, unset options are decided, none is dead."""

import copy
import dataclasses
import pickle
from typing import Any, cast

import pytest
import torch

from tests.core.models import SIZES, tokens
from torchscale_fairseq import Decoder, DecoderConfig, Encoder, EncoderConfig, EncoderDecoder, EncoderDecoderConfig

CONFIGS = (EncoderConfig, DecoderConfig, EncoderDecoderConfig)


@pytest.mark.parametrize(
    ("config", "kwargs", "error", "message"),
    [
        (
            DecoderConfig,
            {"moe_count": 2},
            TypeError,
            r"no option moe_count; did you mean moe_expert_count\?",
        ),
        (EncoderConfig, {"encoder_layer": 2}, TypeError, "no option encoder_layer; did you mean encoder_layers?"),
        (DecoderConfig, {"encoder_embed_dim": 8}, TypeError, "DecoderConfig has no option encoder_embed_dim"),
        (EncoderConfig, {"deepnorm": True, "subln": True}, ValueError, "deepnorm and subln cannot both be on"),
        (
            EncoderConfig,
            {"encoder_embed_dim": 100, "encoder_attention_heads": 12},
            ValueError,
            r"encoder_embed_dim \(100\) must be divisible by encoder_attention_heads \(12\); "
            "give encoder_attention_heads=10",
        ),
        (
            DecoderConfig,
            {"dropout": 1.5},
            ValueError,
            r"dropout \(1.5\) must be at least 0 and below 1; give dropout=0.1",
        ),
        (DecoderConfig, {"decoder_layers": 0}, ValueError, r"decoder_layers \(0\) must be at least 1"),
        (DecoderConfig, {"decoder_layers": "six"}, TypeError, "decoder_layers must be int, got 'six'"),
        (DecoderConfig, {"decoder_layers": True}, TypeError, "decoder_layers must be int, got True"),
        (DecoderConfig, {"subln": 1}, TypeError, "subln must be bool or None, got 1"),
        (EncoderConfig, {"activation_fn": "tanh"}, ValueError, r"activation_fn \('tanh'\) must be one of gelu"),
        (EncoderConfig, {"rel_pos_buckets": 32}, ValueError, "belong together"),
        (EncoderConfig, {"rel_pos_buckets": 32, "max_rel_pos": 16}, ValueError, "above half of it"),
        (
            DecoderConfig,
            {"xpos_rel_pos": True, "decoder_embed_dim": 36, "decoder_attention_heads": 12},
            ValueError,
            "must be even",
        ),
        (DecoderConfig, {"multiway": True}, ValueError, "multiway has no use in a decoder"),
        (
            EncoderConfig,
            {"deepnorm": True, "encoder_normalize_before": True},
            ValueError,
            "deepnorm is post-norm and contradicts encoder_normalize_before=True",
        ),
        (DecoderConfig, {"decoder_normalize_before": False}, ValueError, "give subln=False for a plain post-norm"),
        (
            EncoderConfig,
            {"flash_attention": True, "attention_backend": "naive"},
            ValueError,
            "flash_attention=True contradicts attention_backend=naive",
        ),
        (
            EncoderDecoderConfig,
            {"share_all_embeddings": True, "decoder_embed_dim": 384},
            ValueError,
            r"share_all_embeddings needs encoder_embed_dim \(768\) equal to decoder_embed_dim \(384\)",
        ),
        (EncoderConfig, {"vocab_size": 0}, ValueError, r"vocab_size \(0\) must be positive"),
        (
            EncoderConfig,
            {"segment_length": "[2048,4096]"},
            ValueError,
            r"segment_length \(\[2048, 4096\]\) and dilated_ratio \(\[\]\) must have one entry per branch",
        ),
        (
            DecoderConfig,
            {"segment_length": "[64,128]", "dilated_ratio": "[1]"},
            ValueError,
            r"segment_length \(\[64, 128\]\) and dilated_ratio \(\[1\]\) must have one entry per branch",
        ),
        (
            DecoderConfig,
            {"segment_length": "2048", "dilated_ratio": "[1]"},
            ValueError,
            r"segment_length \(2048\) must be a list of whole numbers from 1 on, such as '\[2048,4096\]'",
        ),
        (DecoderConfig, {"segment_length": "[64", "dilated_ratio": "[1]"}, ValueError, r"segment_length \(\[64\) must"),
        (DecoderConfig, {"segment_length": [64], "dilated_ratio": [0]}, ValueError, r"dilated_ratio \(\[0\]\) must be"),
        (DecoderConfig, {"segment_length": [64], "dilated_ratio": [True]}, ValueError, "whole numbers from 1 on"),
        (
            DecoderConfig,
            {"segment_length": 64, "dilated_ratio": 1},
            TypeError,
            "segment_length must be str or Sequence or None, got 64",
        ),
        (
            EncoderConfig,
            {"segment_length": [64], "dilated_ratio": [1], "rel_pos_buckets": 32, "max_rel_pos": 128},
            ValueError,
            r"rel_pos_buckets \(32\) is for dense attention and segment_length for dilated",
        ),
        (
            DecoderConfig,
            {"segment_length": [64], "dilated_ratio": [1], "xpos_rel_pos": True, "blockwise_causal_window": 64},
            ValueError,
            r"blockwise_causal_window \(64\) is for dense attention and segment_length",
        ),
    ],
)
def test_errors(config: type, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        config(**kwargs)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="takes keyword arguments only"):
        cast(Any, EncoderConfig)(64000)


def test_unset_options_are_decided_together() -> None:
    assert EncoderConfig().uses_subln and EncoderConfig().encoder_pre_norm
    deepnorm = EncoderDecoderConfig(deepnorm=True)
    assert not (deepnorm.uses_subln or deepnorm.encoder_pre_norm or deepnorm.decoder_pre_norm)
    plain = dataclasses.replace(deepnorm, deepnorm=False, subln=False)
    assert plain.encoder_pre_norm and plain.decoder_pre_norm and not plain.uses_subln
    assert EncoderConfig().has_absolute_positions
    assert not EncoderConfig(xpos_rel_pos=True).has_absolute_positions
    assert EncoderConfig(xpos_rel_pos=True, torchscale_compatible=True).has_absolute_positions


def test_branches_are_lists_or_spell_them() -> None:
    for segments, ratios in (("[2048,4096]", "[1,2]"), ([2048, 4096], [1, 2]), ((2048, 4096), "(1, 2)")):
        config = DecoderConfig(segment_length=segments, dilated_ratio=ratios)
        assert (config.segment_lengths, config.dilation_ratios) == ((2048, 4096), (1, 2))
    unset: list[dict[str, Any]] = [{}, {"segment_length": "", "dilated_ratio": ""}, {"segment_length": []}]
    for nothing in unset:
        assert EncoderConfig(**nothing).segment_lengths == EncoderConfig(**nothing).dilation_ratios == ()


def test_official_placement_of_deepnorm_decoders() -> None:
    """TorchScale's deepnorm switches the encoder alone; the paper's is post-norm on both sides."""
    official = EncoderDecoderConfig(deepnorm=True, torchscale_compatible=True)
    assert not official.encoder_pre_norm and official.decoder_pre_norm
    assert not EncoderDecoderConfig(deepnorm=True).decoder_pre_norm


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_copy_and_pickle(config: type) -> None:
    made = config(vocab_size=10, dropout=0.25)
    assert copy.deepcopy(made) == made == pickle.loads(pickle.dumps(made))


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_option_is_read(config_class: type) -> None:
    """Building, training and decoding a model reads each field: none is dead."""
    read: set[str] = set()

    class Recording(config_class):
        def __getattribute__(self, name: str) -> Any:
            if object.__getattribute__(self, "__dict__").get("_checked"):
                read.add(name)
            return super().__getattribute__(name)

    sides = [s for s in ("encoder", "decoder") if f"{s}_layers" in {f.name for f in dataclasses.fields(config_class)}]
    sizes: dict[str, Any] = {f"{side}_{k}": v for side in sides for k, v in SIZES.items()}
    experts = {"moe_freq": 2, "moe_expert_count": 4, "use_xmoe": True, "bitnet": "b1.58"}
    config = Recording(vocab_size=40, xpos_rel_pos=True, rel_pos_buckets=8, max_rel_pos=16, **experts, **sizes)
    object.__setattr__(config, "_checked", True)
    model = {EncoderConfig: Encoder, DecoderConfig: Decoder, EncoderDecoderConfig: EncoderDecoder}[config_class](config)
    for mode in (False, True):
        model.train(mode)
        if config_class is EncoderDecoderConfig:
            logits = model(tokens(2, 5), tokens(2, 4))[0]
        else:
            output = model(tokens(2, 5))
            logits = output["encoder_out"] if config_class is EncoderConfig else output[0]
    logits.sum().backward()
    dead = {f.name for f in dataclasses.fields(config_class)} - read
    # what is read on one side only or only when something else is set
    conditional = {"encoder_learned_pos", "decoder_learned_pos", "dilated_ratio"}
    assert dead <= conditional, dead


def test_learned_positions_are_read() -> None:
    kinds: list[tuple[str, Any, Any]] = [("encoder", EncoderConfig, Encoder), ("decoder", DecoderConfig, Decoder)]
    for side, config, model in kinds:
        sizes: dict[str, Any] = {f"{side}_{k}": v for k, v in SIZES.items()}
        learned = model(config(vocab_size=40, **{f"{side}_learned_pos": True}, **sizes))
        fixed = model(config(vocab_size=40, **sizes))
        assert "embed_positions.weight" in dict(learned.named_parameters())
        assert "embed_positions.weight" not in dict(fixed.named_parameters())


def test_too_long_a_sequence() -> None:
    sizes: dict[str, Any] = {f"decoder_{k}": v for k, v in SIZES.items()}
    for learned in (True, False):
        model = Decoder(DecoderConfig(vocab_size=40, max_target_positions=6, decoder_learned_pos=learned, **sizes))
        model(tokens(1, 6))
        with pytest.raises(ValueError, match=r"7 tokens is longer than max_target_positions \(6\); shorten"):
            model(tokens(1, 7))
        state: dict[str, Any] = {}
        model(tokens(1, 6), incremental_state=state)
        with pytest.raises(ValueError, match="7 tokens is longer"):
            model(tokens(1, 7), incremental_state=state)
    free = Decoder(DecoderConfig(vocab_size=40, max_target_positions=6, xpos_rel_pos=True, **sizes))
    assert free(tokens(1, 9))[0].shape == (1, 9, 40)
    padded = torch.arange(7)[None] < 2  # 7 columns but 5 tokens
    assert model(tokens(1, 7), padded)[0].isfinite().all()


def test_blockwise_causal_window_is_for_evaluation_with_xpos() -> None:
    sizes: dict[str, Any] = {f"decoder_{k}": v for k, v in SIZES.items()}
    with pytest.raises(ValueError, match=r"blockwise_causal_window \(6\) is for models with xpos_rel_pos"):
        DecoderConfig(blockwise_causal_window=6, **sizes)
    with pytest.raises(ValueError, match=r"blockwise_causal_window \(5\) must be even"):
        DecoderConfig(blockwise_causal_window=5, xpos_rel_pos=True, **sizes)
    config = DecoderConfig(vocab_size=40, xpos_rel_pos=True, **sizes)
    model, blockwise = Decoder(config), Decoder(dataclasses.replace(config, blockwise_causal_window=6))
    blockwise.load_state_dict(model.state_dict())
    text = tokens(1, 20)
    assert torch.equal(model(text)[0], blockwise(text)[0])
    model.eval(), blockwise.eval()
    assert not torch.allclose(model(text)[0][:, -1], blockwise(text)[0][:, -1])
    far = text.clone()
    far[:, 0] = 39 if text[0, 0] != 39 else 38
    seen = blockwise(far)[0] - blockwise(text)[0]  # three layers carry the first block's tokens 3 blocks on
    assert seen[:, :6].any() and not seen[:, 12:].any()


def test_missing_input() -> None:
    sizes: dict[str, Any] = {f"encoder_{k}": v for k, v in SIZES.items()}
    with pytest.raises(ValueError, match="needs src_tokens or token_embeddings"):
        Encoder(EncoderConfig(vocab_size=40, **sizes))(None)
    with pytest.raises(ValueError, match="built without embed_tokens"):
        Encoder(EncoderConfig(**sizes))(tokens(1, 3))
    with pytest.raises(ValueError, match=r"multiway_split_position \(1\) has no use without multiway=True"):
        Encoder(EncoderConfig(vocab_size=40, **sizes))(tokens(1, 3), multiway_split_position=1)
