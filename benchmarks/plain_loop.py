"""A plain training loop in PyTorch: the GPT of ``gpt_magneto``, compiled, with torch's own attention and fused AdamW.

    python -m benchmarks.plain_loop 12 768 12 16 1024      # layers, width, heads, sequences, tokens in each

Float32 weights under bfloat16 autocast, learned positions, tied embeddings, gradients clipped to norm 1. One batch of
random tokens stays on the device. ``benchmarks/throughput.py`` runs it; it prints one line of JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm attention and feed-forward network, with SubLN's two inner norms if ``subln``."""

    def __init__(self, width: int, heads: int, *, subln: bool):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.inner_attention_norm = nn.LayerNorm(width) if subln else nn.Identity()
        self.inner_ffn_norm = nn.LayerNorm(4 * width) if subln else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, width) to the same."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.out(self.inner_attention_norm(y))
        return x + self.down(self.inner_ffn_norm(F.gelu(self.up(self.ffn_norm(x)))))


class GPT(nn.Module):
    """A causal language model; returns the mean cross-entropy."""

    def __init__(self, layers: int, width: int, heads: int, length: int, vocab_size: int, *, subln: bool):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, subln=subln) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(batch, seq) tokens and the ones to predict."""
        x = self.tokens(source) + self.positions.weight[: source.size(1)]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), target.flatten())


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of an update, the median of ``--repeats`` runs of ``--updates`` each."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    device, subln = options.device, not options.pre_norm
    with torch.device(device):
        model = GPT(options.layers, options.width, options.heads, options.length, options.vocab_size, subln=subln)
        tokens = torch.randint(options.vocab_size, (options.sequences, options.length + 1))
    source, target = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    compiled = torch.compile(model) if device == "cuda" else model
    return {"seconds": seconds_of_update(lambda: compiled(source, target), list(model.parameters()), options)}


def seconds_of_update(
    loss_of_batch: Callable[[], Tensor], parameters: list[nn.Parameter], options: argparse.Namespace
) -> float:
    """Time forward, backward, clipping and fused AdamW.

    Args:
        loss_of_batch: computes the loss; on a GPU under bfloat16 autocast.
        parameters: to train.
        options: device, warmup, updates and repeats, as of the command.

    Returns:
        The median of the repeats. How far the measurement has come goes to stderr.
    """
    begun = time.perf_counter()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def update() -> None:
        with torch.autocast("cuda", torch.bfloat16) if options.device == "cuda" else nullcontext():
            loss = loss_of_batch()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    update()
    synchronize(options.device)
    show_progress(f"first update, which compiles on a GPU, after {time.perf_counter() - begun:.1f} s")
    for _ in range(options.warmup - 1):
        update()
    seconds = []
    for _ in range(options.repeats):
        synchronize(options.device)
        start = time.perf_counter()
        for _ in range(options.updates):
            update()
        synchronize(options.device)
        seconds.append((time.perf_counter() - start) / options.updates)
        show_progress(f"{1e3 * seconds[-1]:.1f} ms an update")
    return statistics.median(seconds)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def show_progress(text: str) -> None:
    """Say on stderr what this program has done."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def add_timing_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``seconds_of_update``."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--warmup", type=int, default=8, help="updates before those that count (8)")
    parser.add_argument("--updates", type=int, default=10, help="in a run (10)")
    parser.add_argument("--repeats", type=int, default=3, help="runs (3)")


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("layers", "width", "heads", "sequences", "length"):
        parser.add_argument(name, type=int)
    parser.add_argument("--vocab-size", type=int, default=50_000)
    parser.add_argument("--pre-norm", action="store_true", help="without SubLN's inner norms")
    add_timing_options(parser)
    print(json.dumps(measure(parser.parse_args(words))))


if __name__ == "__main__":
    main(sys.argv[1:])
