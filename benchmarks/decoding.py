"""Generation by fairseq's own generator on a GPU: with steps as CUDA graphs, without, and by stock's transformer.

    python -m benchmarks.decoding                                      # on a GPU, float16
    python -m benchmarks.decoding --device cpu --models gpt_deepnorm_small --batches 1 --tokens 8
    python -m benchmarks.decoding --sentences 0 --models gpt_deepnorm_xl retnet_xl --batches 16 --prompt 2048
    python -m benchmarks.decoding --sentences 0 --models gpt_magneto_xl bitnet_1_3b:packed --batches 1

Sampling draws --tokens new tokens for each of --batches sentences, after the token that begins a text. Translation is
beam search, 5 wide, of --sentences sentences of random lengths in batches of 64, each to as many tokens as its batch's
longest source; stock's transformer has the same sizes. Weights are random: a step takes as long as with any others.
All sides run in one process, in turns, after a round that does not count. With --prompt the new tokens follow a text of
that length, which the model reads in one pass; the pass is timed alone, and its time is subtracted. ARCH:packed is a
BitNet model whose weights are packed (docs/bitnet.md).
"""

import argparse
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.models.transformer import base_architecture
from fairseq.tasks import FairseqTask

from benchmarks.compare import positive
from benchmarks.measure import time_in_turns
from benchmarks.report import machine, versions
from torchscale_fairseq import plugin
from torchscale_fairseq.tools.convert.bitnet_packing import pack_all

MODELS = ("gpt_deepnorm", "gpt_deepnorm_xl", "retnet_base", "retnet_xl")
TRANSLATION = ("mt_deepnorm", "transformer")
BATCH = 64
USUAL, RECORDED, STOCK = "usual steps", "CUDA graphs", "stock transformer"


def dictionary(vocab_size: int) -> Dictionary:
    """With this many entries."""
    found = Dictionary()
    for index in range(vocab_size - len(found)):
        found.add_symbol(f"w{index}")
    return found


def build(name: str, words: Dictionary, longest: int, options: argparse.Namespace) -> Any:
    """A registered model with random weights, ready to generate; ``ARCH:packed`` has those of ``ARCH`` packed."""
    arch, _, packed = name.partition(":")
    with torch.device(options.device):
        model = registered(arch, words, longest)
        if packed:
            weights, _ = pack_all(model.state_dict(), model.decoder.config.bitnet)
            model = registered(arch, words, longest, bitnet_packed=True)
            model.load_state_dict(weights)
    model.to(options.device, options.dtype).make_generation_fast_(need_attn=False)
    return model


def registered(arch: str, words: Dictionary, longest: int, **more: Any) -> Any:
    """The model of an architecture, on torch's default device."""
    torch.manual_seed(0)
    task = Namespace(source_dictionary=words, target_dictionary=words)
    given: dict[str, Any] = {
        "max_target_positions": longest,
        "max_source_positions": longest,
        "tokens_per_sample": longest,
    }
    given |= {"share_decoder_input_output_embed": True, "add_bos_token": False, **more}
    if arch == "transformer":
        given |= {f"{side}_embed_path": None for side in ("encoder", "decoder")}
        cfg = Namespace(**given)
        base_architecture(cfg)
    else:
        cfg = Namespace(**{**vars(MODEL_DATACLASS_REGISTRY[arch]()), **given})
    return MODEL_REGISTRY[arch].build_model(cfg, task)


def read_first(model: Any, words: Dictionary, batch: int, options: argparse.Namespace) -> Callable[[], Any]:
    """Let the decoder begin each text with a prompt, in the pass of its first token; a function that does this pass."""
    shape, draw = (batch, options.prompt), torch.Generator().manual_seed(3)
    prompt = torch.randint(words.nspecial, len(words), shape, generator=draw).to(options.device)
    decoder, forward = model.decoder, type(model.decoder).forward
    decoder.forward = lambda tokens, **given: forward(decoder, torch.cat((prompt, tokens), 1), **given)
    start = torch.full((batch, 1), words.eos(), device=options.device)
    return torch.no_grad()(lambda: decoder(start, incremental_state={}))


def sampling(model: Any, words: Dictionary, batch: int, options: argparse.Namespace) -> Callable[[], Any]:
    """A function that samples texts of --tokens tokens and returns their tokens."""
    arguments = GenerationConfig(beam=1, sampling=True, max_len_b=options.tokens, min_len=options.tokens)
    generator = FairseqTask.build_generator(Namespace(target_dictionary=words), [model], arguments)
    start = torch.full((batch, 1), words.eos(), device=options.device)
    sample = {"net_input": {"src_tokens": start, "src_lengths": torch.ones_like(start[:, 0])}}

    def run() -> Any:
        torch.manual_seed(1)
        return [beam[0]["tokens"].tolist() for beam in generator.generate([model], sample)]

    return run


def translation(model: Any, words: Dictionary, options: argparse.Namespace) -> Callable[[], Any]:
    """A function that translates all batches and returns the best hypotheses."""
    draw = torch.Generator().manual_seed(2)
    lengths = sorted(torch.randint(8, options.longest + 1, (options.sentences,), generator=draw).tolist())
    samples: list[dict[str, Any]] = []
    for start in range(0, len(lengths), BATCH):
        own = lengths[start : start + BATCH]
        tokens = torch.full((len(own), own[-1]), words.pad())
        for row, length in zip(tokens, own, strict=True):
            row[-length:] = torch.randint(words.nspecial, len(words), (length,), generator=draw)
        tokens[:, -1] = words.eos()
        inputs = {"src_tokens": tokens.to(options.device), "src_lengths": torch.tensor(own, device=options.device)}
        samples.append({"net_input": inputs, "id": torch.arange(len(own), device=options.device)})
    task = Namespace(target_dictionary=words)

    def run() -> Any:
        found = []
        for sample in samples:
            longest = sample["net_input"]["src_tokens"].size(1)
            arguments = GenerationConfig(beam=5, max_len_a=0, max_len_b=longest, min_len=longest)
            generator = FairseqTask.build_generator(task, [model], arguments)
            found += [beam[0]["tokens"].tolist() for beam in generator.generate([model], sample)]
        return found

    return run


def compare(
    sides: dict[str, Callable[[], Any]],
    items: int,
    unit: str,
    title: str,
    options: argparse.Namespace,
    uncounted: Callable[[], Any] | None = None,
) -> list[str]:
    """Time the sides; lines of the table. The first one's speed is the measure. All sides begin with the pass that does
    not count, if there is one."""
    results = {name: run() for name, run in sides.items()}
    agreement = ""
    if USUAL in results and RECORDED in results:
        pairs = list(zip(results[USUAL], results[RECORDED], strict=True))
        agreement = f"{sum(a == b for a, b in pairs)} of {len(pairs)} equal"
    timed = sides if uncounted is None else {**sides, "": uncounted}
    seconds = time_in_turns(timed, warmups=0, repeats=options.repeats)
    begins_after = seconds.pop("", 0.0)
    seconds = {name: taken - begins_after for name, taken in seconds.items()}
    first = next(iter(seconds.values()))
    rows = []
    for name, taken in seconds.items():
        equal = agreement if name == RECORDED else ""
        rows.append(f"| {title} | {name} | {items / taken:,.0f} {unit}/s | {first / taken:.2f} | {equal} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def recorded_and_not(model: Any, run: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """The two sides of one model."""
    decoder = model.decoder
    decoder.record_steps()
    graphs = decoder._step_graphs

    def with_graphs(used: Any) -> Callable[[], Any]:
        def timed() -> Any:
            decoder._step_graphs = used
            return run()

        return timed

    return {USUAL: with_graphs(None), RECORDED: with_graphs(graphs)}


def main(words: list[str]) -> int:
    options = parse_options(words)
    plugin.register()
    entries = dictionary(options.vocab_size)
    rows = []
    for arch in options.models:
        model = build(arch, entries, options.prompt + options.tokens + 2, options)
        for batch in options.batches:
            uncounted = read_first(model, entries, batch, options) if options.prompt else None
            sides = recorded_and_not(model, sampling(model, entries, batch, options))
            after = f" after {options.prompt:,}" if options.prompt else ""
            title = f"{arch}, sampling, batch {batch}, {options.tokens} tokens{after}"
            rows += compare(sides, batch * options.tokens, "tokens", title, options, uncounted)
        del model, sides, uncounted
    if options.sentences:
        entries = dictionary(options.translation_vocab_size)
        models = [build(arch, entries, 4 * options.longest, options) for arch in TRANSLATION]
        sides = {STOCK: translation(models[1], entries, options)}
        sides |= recorded_and_not(models[0], translation(models[0], entries, options))
        title = f"{TRANSLATION[0]}, beam 5, {options.sentences} sentences"
        rows += compare(sides, options.sentences, "sentences", title, options)
    print(f"`{shlex.join(['python', '-m', 'benchmarks.decoding', *words])}`\n")
    print(f"{machine(options.device)}; {versions()}\n")
    print("\n".join(["| | steps | speed | times the first | outputs |", "|---|---|---|---|---|", *rows]))
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="decoding.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="*", default=MODELS, help=f"language models ({' '.join(MODELS)})")
    add("--batches", type=positive, nargs="+", default=[1, 16], help="of sampling (1 16)")
    add("--tokens", type=positive, default=512, help="that sampling draws (512)")
    add("--prompt", type=int, default=0, metavar="N", help="tokens that each text of sampling begins with (0)")
    add("--sentences", type=int, default=1000, help="to translate; 0 for none (1000)")
    add("--longest", type=positive, default=48, help="tokens of the longest of them (48)")
    add("--vocab-size", type=positive, default=50_000, help="of language models (50,000)")
    add("--translation-vocab-size", type=positive, default=10_000, help="of translation models (10,000)")
    add("--repeats", type=positive, default=3, help="of each, of which the median counts (3)")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(cuda)")
    add("--precision", choices=("float32", "float16", "bfloat16"), help="(float16 on a GPU, float32 on a CPU)")
    options = parser.parse_args(words)
    options.dtype = getattr(torch, options.precision or ("float16" if options.device == "cuda" else "float32"))
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
