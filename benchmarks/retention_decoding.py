"""Greedy steps after prompts, of RetNet and of gpt_deepnorm."""

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import time_in_turns
from benchmarks.report import OURS, Row
from benchmarks.retention_steps import ATTENTION, Case
from torchscale_fairseq import Decoder, RetNetDecoder

STEPS_PER_TURN = 32


def decoding(case: Case, prompts: list[int], options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Greedy steps after prompts: six layers of RetNet and of gpt_deepnorm."""
    rows, notes = [], []
    shape = {"decoder_layers": options.layers, "vocab_size": 8000}
    longest = max(prompts) + options.new_tokens
    models = {
        ATTENTION: Decoder(case.attention_config(**shape, max_target_positions=longest)),
        OURS: RetNetDecoder(case.config(**shape, torchscale_compatible=False)),
    }
    for prompt in prompts:
        title = f"decoding, {options.sentences} sentences, {options.new_tokens} tokens after {prompt:,}"
        decoders = {side: Greedy(model, options.sentences, prompt, case.seed) for side, model in models.items()}
        turns = options.new_tokens // STEPS_PER_TURN
        seconds = dict.fromkeys(models, 0.0)
        for _ in range(turns):
            for side, taken in time_in_turns(decoders, warmups=0, repeats=1).items():
                seconds[side] += taken
        items = turns * STEPS_PER_TURN * options.sentences
        rows += [Row(title, side, seconds[side], items=items, unit="tokens") for side in models]
        held = ", ".join(f"{side} {decoder.held() / 2**20:,.1f} MiB" for side, decoder in decoders.items())
        ratio = seconds[ATTENTION] / seconds[OURS]
        notes.append(f"{title}: {ratio:.2f} times the tokens per second of attention; held after it: {held}.")
    return rows, notes


class Greedy:
    """Takes STEPS_PER_TURN steps at each call, after a prompt that it has read."""

    @torch.no_grad()
    def __init__(self, model: Any, sentences: int, prompt: int, seed: int):
        self.model = model.eval()
        self.tokens = torch.randint(4, 8000, (sentences, prompt), generator=torch.Generator().manual_seed(seed))
        self.state: dict[str, Any] = {}
        self.logits = model(self.tokens, incremental_state=self.state, features_only=True)[0][:, -1:]
        self.logits = model.output_layer(self.logits)

    @torch.no_grad()
    def __call__(self) -> None:
        for _ in range(STEPS_PER_TURN):
            self.tokens = torch.cat((self.tokens, self.logits.argmax(-1)), 1)
            self.logits = self.model(self.tokens, incremental_state=self.state)[0]

    def held(self) -> int:
        """Bytes of the state."""
        caches = [vars(layer.self_attn) for layer in self.state["decoding_state"].layers]
        return sum(x.nbytes for cache in caches for x in cache.values() if isinstance(x, Tensor))
