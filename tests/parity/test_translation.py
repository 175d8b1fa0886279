"""The fairseq translation model equals TorchScale's ``mt`` wrapper."""

import argparse
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import assert_close
from tests.parity.vectors import Case, cases, check_loss_and_gradients

pytest.importorskip("fairseq")

from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY, build_model

import torchscale_fairseq.models


def build(case: Case) -> torch.nn.Module:
    """The case's model through fairseq's registry, as a checkpoint of the official code would be."""
    dictionary = Dictionary()
    for i in range(case.meta["build"]["embed_tokens"][0] - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    options = {f.name for f in dataclasses.fields(torchscale_fairseq.models.translation.EncoderDecoderConfig)}
    kwargs = {k: v for k, v in case.meta["config_kwargs"].items() if k in options}
    args = argparse.Namespace(arch="mt_base", encoder_embed_path=None, decoder_embed_path=None, **kwargs)
    assert "mt_base" in ARCH_MODEL_REGISTRY
    model = build_model(args, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary))
    state = {**case.group("param/"), **case.group("buffer/")}
    for name, owner in case.meta["extra"]["tied"].items():
        state[name] = state[owner]
    model.load_state_dict(state, strict=True, model_cfg=args)
    return model.eval()


@pytest.mark.parametrize("case", cases("fs_mt*"), ids=lambda c: c.name)
def test_official_translation_checkpoint(case: Case) -> None:
    model = build(case)
    source, target, keep = case["in/src_tokens"], case["in/prev_output_tokens"], case["in/loss_keep"]
    logits, _ = model(source, None, target)
    assert_close(logits[keep], case["out/logits"][keep], "parity", "logits")
    with torch.no_grad():
        encoder_out, state = model.encoder(source), {}
        steps = [
            model.decoder(target[:, : n + 1], encoder_out=encoder_out, incremental_state=state)[0]
            for n in range(target.size(1))
        ]
    assert_close(torch.cat(steps, 1)[keep], case["out/incremental_logits"][keep], "parity", "incremental logits")
    check_loss_and_gradients(case, model, logits)
