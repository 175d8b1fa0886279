"""RetNet beside official TorchScale 0.3.0 (its parallel form) and beside attention: measured in one run, one table.

    pip install --no-deps torchscale==0.3.0
    python benchmarks/retention.py                      # training steps of a layer, retention alone, decoding
    python benchmarks/retention.py train --lengths 4096

The official side and ours have the same weights and inputs; outputs and gradients are compared first, at each length,
and where they disagree nothing is timed and the exit status is 1. Official lengths above --official-up-to are left
out, since its memory grows with the square of the length.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compare import positive
from measure import in_fresh_process, peak_resident_bytes, resident_bytes, time_in_turns
from official import OfficialMissingError, load_official
from report import OFFICIAL, OURS, DisagreementError, Row, document
from torch import Tensor, nn

from torchscale_fairseq import Decoder, DecoderConfig, RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.ops.retention_forms import retention
from torchscale_fairseq.core.ops.retention_tables import log_decays, retention_tables, token_counts

ATTENTION = "attention"
"""The side that is a layer, or a model, of gpt_deepnorm."""
ALLOWED = 2e-4
"""Largest difference from the official side in float32, of outputs and of each gradient, relative to the largest
entry: what is stated with the golden vectors of tests/parity for gradients, which norms amplify."""
STEPS_PER_TURN = 32


@dataclass(frozen=True)
class Case:
    """One length, and the sizes of a layer."""

    length: int
    width: int = 512
    value_width: int = 864
    heads: int = 4
    device: str = "cpu"
    seed: int = 1

    def config(self, **options: Any) -> RetNetConfig:
        """Of ours; it computes what the official layer does."""
        return RetNetConfig(
            decoder_embed_dim=self.width,
            decoder_value_embed_dim=self.value_width,
            decoder_ffn_embed_dim=self.value_width,
            decoder_retention_heads=self.heads,
            **{"decoder_layers": 1, "activation_fn": "swish", "torchscale_compatible": True, **options},
        )

    def attention_config(self, **options: Any) -> DecoderConfig:
        """Of gpt_deepnorm, with heads of 64 channels and four times the width in its feed-forward networks."""
        return DecoderConfig(
            decoder_embed_dim=self.width,
            decoder_ffn_embed_dim=4 * self.width,
            decoder_attention_heads=self.width // 64,
            **{"decoder_layers": 1, "deepnorm": True, **options},
        )

    def random(self, *shape: int) -> Tensor:
        """Normal numbers that need a gradient."""
        generator = torch.Generator().manual_seed(self.seed + sum(shape))
        return torch.randn(*shape, generator=generator).to(self.device).requires_grad_()


Step = Callable[[], dict[str, Tensor]]
"""Runs forward and backward; returns output and gradients."""


def layer_step(case: Case, side: str) -> Step:
    """A training step of one layer, without embeddings."""
    torch.manual_seed(case.seed)
    ours = RetNetDecoder(case.config()).to(case.device)
    x, weights = case.random(1, case.length, case.width), case.random(1, case.length, case.width).detach()
    if side == ATTENTION:
        layer: nn.Module = Decoder(case.attention_config()).to(case.device).layers[0]
        nothing = dict.fromkeys(
            ("padding_mask", "bias", "xpos", "memory", "memory_padding_mask", "memory_bias", "state", "not_routed")
        )
        forward = lambda x: layer(x, block=0, **nothing)[0]  # noqa: E731
    elif side == OURS:
        layer = ours.layers[0]
        arguments = ours._retention_arguments(x, None, None, None)
        nothing = dict.fromkeys(("memory", "memory_padding_mask", "state", "not_routed"))
        forward = lambda x: layer(x, retention=arguments, **nothing)[0]  # noqa: E731
    else:
        from torchscale.architecture import config, retnet

        options = config.RetNetConfig(**{k: v for k, v in vars(case.config()).items() if k.startswith("decoder_")})
        options.activation_fn, options.decoder_normalize_before = "swish", True
        layer = retnet.DecoderLayer(options, 0).to(case.device)
        layer.load_state_dict(ours.layers[0].state_dict())
        positions = retnet.RetNetRelPos(options).to(case.device)(case.length)
        forward = lambda x: layer(x, retention_rel_pos=positions)[0]  # noqa: E731
    return partial(_step, forward, weights, {"input": x, **dict(layer.named_parameters())})


def retention_step(case: Case, side: str) -> Step:
    """The same of retention alone: rotated queries and keys, and values. Scores are so small that the official form's
    clamp at 1 leaves them alone."""
    key_dim, value_dim = case.width // case.heads, case.value_width // case.heads
    query, key = (case.random(1, case.length, case.heads, key_dim + i)[..., :key_dim].detach() for i in range(2))
    leaves = {
        "query": query / 100,
        "key": key / key_dim**0.5,
        "value": case.random(1, case.length, case.heads, value_dim),
    }
    leaves = {name: x.detach().contiguous().requires_grad_() for name, x in leaves.items()}
    log_decay = log_decays(case.heads, "powers", torch.device(case.device)).float()
    if side == OURS:
        counts = token_counts(case.length, torch.zeros(1, dtype=torch.long, device=case.device))
        cos, sin = retention_tables(counts, log_decay, 2, dtype=torch.float32, inclusive=False).query
        scale = (cos.square() + sin.square()).sqrt()
        forward = partial(_our_retention, leaves, log_decay, scale)
    else:
        forward = partial(_official_retention, case, leaves)
    generator = torch.Generator().manual_seed(case.seed)
    weights = torch.randn(leaves["value"].shape, generator=generator).to(case.device)
    return partial(_step, lambda _: forward(), weights, {"input": leaves["value"], **leaves})


def _our_retention(leaves: dict[str, Tensor], log_decay: Tensor, scale: Tensor) -> Tensor:
    return retention(leaves["query"] * scale, leaves["key"], leaves["value"], log_decay)[0]


def _official_retention(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    from torchscale.architecture import config, retnet
    from torchscale.component.multiscale_retention import MultiScaleRetention

    global _official  # the mask is made once per model, and not part of a step
    key = (case.length, case.width, case.heads, case.device)
    if _official is None or _official[0] != key:
        options = config.RetNetConfig(decoder_embed_dim=case.width, decoder_retention_heads=case.heads)
        layer = MultiScaleRetention(options, case.width, case.value_width, case.heads)
        _official = key, layer, retnet.RetNetRelPos(options).to(case.device)(case.length)[1]
    _, layer, mask = _official
    query, key_, value = leaves["query"].transpose(1, 2), leaves["key"].transpose(1, 2), leaves["value"].flatten(2)
    return layer.parallel_forward(query, key_, value, mask)


_official: Any = None


def _step(forward: Callable[[Tensor], Tensor], weights: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    for leaf in leaves.values():
        leaf.grad = None
    output = forward(leaves["input"])
    output.backward(weights)
    return {"output": output.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


BENCHMARKS: dict[str, Callable[[Case, str], Step]] = {"layer": layer_step, "retention alone": retention_step}


def compare(name: str, case: Case, sides: list[str], options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Check that ours and the official side agree, then measure.

    Raises:
        DisagreementError: they differ; nothing was timed.
    """
    title = f"{name}, training step, 1 x {case.length:,}"
    make = BENCHMARKS[name]
    notes = []
    if OFFICIAL in sides:
        expected, found = (make(case, side)() for side in (OFFICIAL, OURS))
        worst, where = max((_difference(found[key], expected[key]), key) for key in expected)
        text = f"{title}: output and gradients differ by up to {worst:.1g} ({where}), allowed {ALLOWED:.0e}"
        if not worst <= ALLOWED:
            raise DisagreementError(f"ours and official disagree: {text}")
        notes.append(f"{text}.")
        del expected, found
    steps = {side: make(case, side) for side in sides}
    seconds = time_in_turns(steps, warmups=1, repeats=options.repeats)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what a process frees is then no longer resident
    memory = {side: in_fresh_process(step_memory, name, case, side, options.torchscale) for side in sides}
    rows = [Row(title, side, seconds[side], memory[side], items=case.length, unit="tokens") for side in sides]
    return rows, notes


def _difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def step_memory(name: str, case: Case, side: str, torchscale: Path | None) -> int:
    """Bytes by which building a side and two steps make this process grow."""
    if side == OFFICIAL:
        load_official(torchscale)
    before = resident_bytes()
    step = BENCHMARKS[name](case, side)
    for _ in range(2):
        step()
    return peak_resident_bytes() - before


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
    def __init__(self, model: nn.Module, sentences: int, prompt: int, seed: int):
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


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parse_options(words)
    torch.set_num_threads(options.threads)
    try:
        load_official(options.torchscale)
    except OfficialMissingError as error:
        print(f"retention.py: {error}", file=sys.stderr)
        return 2
    rows, notes, status = [], [], 0
    try:
        for found_rows, found_notes in results(options):
            rows += found_rows
            notes += found_notes
    except DisagreementError as error:
        print(f"retention.py: {error}", file=sys.stderr)
        status = 1
    text = document(rows, notes, words, "cpu", script="retention.py")
    print(text, end="")
    if options.output:
        options.output.write_text(text)
    return status


def results(options: argparse.Namespace) -> Any:
    """Rows and notes of each benchmark in turn."""
    if options.benchmark != "decode":
        for name in BENCHMARKS:
            for length in options.lengths:
                sides = [OFFICIAL] if length <= options.official_up_to else []
                sides += [OURS] + [ATTENTION] * (name == "layer")
                print(f"retention.py: {name}, {length} tokens ...", file=sys.stderr)
                yield compare(name, Case(length, options.width, options.value_width, options.heads), sides, options)
    if options.benchmark != "train":
        print("retention.py: decoding ...", file=sys.stderr)
        yield decoding(Case(0, options.width, options.value_width, options.heads), options.prompts, options)


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="retention.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("benchmark", nargs="?", choices=["train", "decode", "both"], default="both", help="default: both")
    add("--torchscale", type=Path, metavar="PATH", help="torchscale's wheel or unpacked wheel; default: the installed")
    add("--output", type=Path, metavar="FILE.md", help="also write what is printed")
    add("--repeats", type=positive, default=3, help="timed repetitions, of which the median counts; default: 3")
    add("--threads", type=positive, default=os.cpu_count(), help="torch's threads; default: all cores")
    add("--width", type=positive, default=512, metavar="N", help="default: 512")
    add("--value-width", type=positive, default=864, metavar="N", help="of values, gate and feed-forward; default: 864")
    add("--heads", type=positive, default=4, metavar="N", help="retention heads; default: 4")
    lengths = [1024, 4096, 8192, 16384]
    add("--lengths", type=positive, nargs="+", default=lengths, metavar="N", help="tokens; default: 1024 to 16384")
    add("--official-up-to", type=positive, default=8192, metavar="N", help="tokens; default: 8192")
    add("--layers", type=positive, default=6, metavar="N", help="of the models that decode; default: 6")
    add("--sentences", type=positive, default=16, metavar="N", help="decoded together; default: 16")
    add("--prompts", type=positive, nargs="+", default=[2048], metavar="N", help="tokens read before; default: 2048")
    add("--new-tokens", type=positive, default=512, metavar="N", help="decoded after them; default: 512")
    options = parser.parse_args(words)
    if options.new_tokens % STEPS_PER_TURN:
        parser.error(f"--new-tokens ({options.new_tokens}) must be a multiple of {STEPS_PER_TURN}")
    return options


if __name__ == "__main__":
    sys.exit(main())
