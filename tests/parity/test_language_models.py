"""The fairseq language models equal TorchScale's ``lm`` and ``mlm`` wrappers."""

import argparse
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import assert_close
from tests.parity.vectors import Case, cases, check_loss_and_gradients

pytest.importorskip("fairseq")

from fairseq.data import Dictionary
from fairseq.models import build_model

import torchscale_fairseq.models  # noqa: F401 - registers them
from torchscale_fairseq.core.config import DecoderConfig, EncoderConfig, RetNetConfig


def build(case: Case, arch: str, config_class: type, **fairseq_options: object) -> torch.nn.Module:
    """The case's model through fairseq's registry, without its parameters."""
    dictionary = Dictionary()
    for i in range(case.meta["build"]["embed_tokens"][0] - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    kwargs = case.meta["config_kwargs"]
    names = {f.name for f in dataclasses.fields(config_class)} | {"tokens_per_sample"}
    args = argparse.Namespace(arch=arch, **{k: v for k, v in kwargs.items() if k in names}, **fairseq_options)
    return build_model(args, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary))


def load(model: torch.nn.Module, case: Case) -> torch.nn.Module:
    state = {**case.group("param/"), **case.group("buffer/")}
    for name, owner in case.meta["extra"].get("tied", {}).items():
        state[name] = state[owner]
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.mark.parametrize("case", cases("fs_lm*") + cases("fs_longlm"), ids=lambda c: c.name)
def test_official_language_model_checkpoint(case: Case) -> None:
    model = load(build(case, "lm_base", DecoderConfig), case)
    tokens, keep = case["in/src_tokens"], case["in/loss_keep"]
    logits, _ = model(tokens)
    assert_close(logits[keep], case["out/logits"][keep], "parity", "logits")
    with torch.no_grad():
        state: dict = {}
        steps = [model.decoder(tokens[:, : n + 1], incremental_state=state)[0] for n in range(tokens.size(1))]
    stepped = case.get("out/incremental_logits")  # which the official LongNet cannot give
    expected = case["out/logits"] if stepped is None else stepped
    assert_close(torch.cat(steps, 1)[keep], expected[keep], "parity", "incremental logits")
    check_loss_and_gradients(case, model, logits)


@pytest.mark.parametrize("case", cases("fs_retnet*"), ids=lambda c: c.name)
def test_official_retnet_checkpoint(case: Case) -> None:
    model = load(build(case, "retnet_base", RetNetConfig, torchscale_compatible=True), case)
    tokens, keep = case["in/src_tokens"], case["in/loss_keep"]
    logits, _ = model(tokens)
    assert_close(logits[keep], case["out/logits"][keep], "parity", "logits")
    with torch.no_grad():
        state: dict = {}
        steps = [model.decoder(tokens[:, : n + 1], incremental_state=state)[0] for n in range(tokens.size(1))]
    assert_close(torch.cat(steps, 1)[keep], case["out/incremental_logits"][keep], "parity_retention", "steps")
    check_loss_and_gradients(case, model, logits)


@pytest.mark.parametrize("case", cases("fs_mlm*"), ids=lambda c: c.name)
def test_official_masked_language_model_checkpoint(case: Case) -> None:
    kwargs = case.meta["config_kwargs"]
    pooler = {k: kwargs[k] for k in ("pooler_activation_fn", "pooler_dropout")}
    model = build(case, "mlm_base", EncoderConfig, **pooler)
    model.register_classification_head(*case.meta["build"]["classification_head"])
    load(model, case)
    tokens, keep = case["in/src_tokens"], case["in/loss_keep"]
    logits, _ = model(tokens)
    assert_close(logits[keep], case["out/logits"][keep], "parity_logits", "logits")
    masked, _ = model(tokens, masked_tokens=case["in/masked_tokens"])
    assert_close(masked, case["out/masked_logits"], "parity_logits", "logits of masked tokens")
    head = case.meta["build"]["classification_head"][0]
    scores, _ = model(tokens, classification_head_name=head)
    assert_close(scores, case["out/classification"], "parity", "classification")
    check_loss_and_gradients(case, model, logits)
