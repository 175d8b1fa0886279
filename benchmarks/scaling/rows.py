"""What the benchmark trains, the goals, and the seconds per update that hooks/sharding/communication.py predicts."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.scaling.log import Logged
from benchmarks.sharding import RECOMPUTING, SHARDED, TINY, TINY_RETNET
from torchscale_fairseq.hooks.sharding.communication import (
    compute_seconds,
    ddp_traffic,
    expert_traffic,
    sharded_traffic,
)

TOY_LENGTH = 32
TINY_HEADS = [*TINY, "--decoder-attention-heads", "2"]
COMPILED = ["--compile"]
EXPERTS = ["--arch", "gpt_deepnorm", "--moe-freq", "2", "--use-xmoe", "--moe-gating-use-fp32", "--moe-expert-count"]
EXPERT_LAYERS, EXPERT_WIDTH, TOP_K = 6, 768, 2
BRANCHES = ["--segment-length", "[2048,16384,131072,1048576]", "--dilated-ratio", "[1,4,16,64]"]
TOY_BRANCHES = ["--segment-length", "[8,32,128]", "--dilated-ratio", "[1,2,4]"]

Prediction = Callable[[Logged, int, int], float]
"""Seconds per update of a model, on this many tokens per GPU and this many GPUs."""


@dataclass(frozen=True)
class Row:
    """A model, trained by one process per GPU."""

    name: str
    title: str
    goal: str
    flags: list[str]
    """Options of fairseq-train."""
    toy: list[str]
    """Further options, which make the model small."""
    sequences: int
    """Batch size per process."""
    length: int
    """Tokens per sequence and process."""
    updates: int = 40
    seconds: int = 180
    """Time limit for each number of processes."""
    compiled: bool = True
    fewest: int = 1
    """Processes that are enough to hold the model."""
    most: int = 64
    splits_sequences: bool = False
    """Processes hold slices of one sequence, which is longer with more of them."""
    baseline: str = ""
    """Row whose measurement in one process ratios are relative to; empty for this one."""
    prediction: Prediction | None = field(default=None, compare=False)

    def tokens(self, *, toy: bool) -> int:
        """Tokens per update and process."""
        return self.sequences * self.length if not toy else self.toy_sequences * TOY_LENGTH

    @property
    def toy_sequences(self) -> int:
        """Batch size per process of the toy."""
        return min(self.sequences, 2)

    def words(self, processes: int, *, toy: bool) -> list[str]:
        """The options that say what is trained, and on which batches."""
        length = (TOY_LENGTH if toy else self.length) * (processes if self.splits_sequences else 1)
        batch = self.toy_sequences if toy else self.sequences
        words = [*self.flags, "--tokens-per-sample", str(length), "--batch-size", str(batch)]
        if toy:
            return [*words, *self.toy]
        return [*words, "--bf16", *(COMPILED if self.compiled else [])]


def ddp_seconds(logged: Logged, tokens: int, gpus: int) -> float:
    """Gradients are summed while layers compute."""
    computing = compute_seconds(logged.parameters, tokens, recompute=False)
    return max(computing, ddp_traffic(logged.parameters, gpus).seconds)


def sharded_seconds(logged: Logged, tokens: int, gpus: int) -> float:
    """Layers are gathered and gradients summed while layers compute; activations are computed twice."""
    return max(compute_seconds(logged.parameters, tokens), sharded_traffic(logged.parameters, gpus).seconds)


def expert_seconds(experts: int) -> Prediction:
    """Layers wait for the exchanges of rows; a token computes with ``TOP_K`` of the experts."""

    def seconds(logged: Logged, tokens: int, gpus: int) -> float:
        active = logged.parameters + TOP_K * logged.expert_parameters * gpus / experts
        computing = compute_seconds(active, tokens, recompute=False)
        exchanging = expert_traffic(tokens, EXPERT_WIDTH, EXPERT_LAYERS, gpus, top_k=TOP_K).seconds
        return max(computing, ddp_traffic(logged.parameters, gpus).seconds) + exchanging

    return seconds


def _sharded(name: str, arch: str, *, fewest: int = 1) -> Row:
    return Row(
        f"sharded-{name}",
        f"fully sharded {arch}, recomputed, 4 x 2,048",
        "45 % of 989 TFLOP/s",
        ["--arch", arch, *SHARDED, *RECOMPUTING],
        [*TINY, *TINY_RETNET],
        sequences=4,
        length=2048,
        updates=20,
        compiled=False,
        prediction=sharded_seconds,
        fewest=fewest,
    )


ROWS = [
    Row(
        "ddp-1.3b",
        "DDP, gpt_magneto_xl (1.3 billion), 8 x 2,048",
        "0.95 of one GPU",
        ["--arch", "gpt_magneto_xl"],
        TINY_HEADS,
        sequences=8,
        length=2048,
        seconds=240,
        prediction=ddp_seconds,
    ),
    _sharded("7b", "retnet_7b"),
    _sharded("13b", "retnet_13b", fewest=2),
    Row(
        "experts-8",
        "X-MoE, 12 x 768, 8 experts on one GPU, 16 x 1,024",
        "",
        [*EXPERTS, "8"],
        TINY_HEADS,
        sequences=16,
        length=1024,
        most=1,
        prediction=expert_seconds(8),
    ),
    Row(
        "experts-64",
        "X-MoE, 12 x 768, 64 experts split over the GPUs, 16 x 1,024",
        "0.85 of 8 experts on one GPU",
        [*EXPERTS, "64"],
        TINY_HEADS,
        sequences=16,
        length=1024,
        baseline="experts-8",
        prediction=expert_seconds(64),
    ),
    Row(
        "longnet",
        "longnet --seq-parallel, one sequence, 131,072 tokens per GPU",
        "0.8 of one GPU",
        ["--arch", "longnet", "--seq-parallel", *BRANCHES, "--xpos-scale-base", "32768"],
        [*TINY_HEADS, *TOY_BRANCHES],
        sequences=1,
        length=131_072,
        splits_sequences=True,
    ),
]
