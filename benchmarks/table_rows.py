"""The rows of benchmarks/table.py."""

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A call of a benchmark."""

    name: str
    work: str
    least: str
    """What it must reach."""
    columns: tuple[str, ...]
    """Headers of the cells to show, of the tables that the benchmark prints."""
    words: list[str]
    """The benchmark and its arguments; DATA stands for --data."""
    toy: list[str]
    """Likewise, at a small size on a CPU."""
    seconds: int = 300
    """Time limit."""
    gpus: int = 1
    titles: int = 1
    """Cells that say what a line of the benchmark's table is about."""
    title: str = ""
    """The beginning of the lines to show, of a benchmark that prints no table."""

    @property
    def needs_data(self) -> bool:
        """Whether sentences are needed."""
        return "DATA" in self.words

    @property
    def has_own_caches(self) -> bool:
        """Whether the benchmark compiles anew, with caches of its own."""
        return self.words[0] == "first_update"


SPEED = "fairseq-train, tokens/s"
TOY_IMAGES = "--device cpu --size tiny --img-size 32 --batch 2 --workers 1"
TOY_TRAINING = "--device cpu --vocab-size 100"


def throughput(
    name: str, work: str, least: str, case: str, more: str = "--updates 150", *, alone: bool = True, gpus: int = 1
) -> Row:
    """Whole updates of fairseq-train, without a plain loop if ``alone``; ``more`` comes after the case."""
    small = ",".join(["small:1x8", *case.split(",")[1:]])
    more = f"{'--ours-alone ' * alone}{more}"
    toy = f"throughput {TOY_TRAINING} --cases {small} {more.replace('--updates 150', '--updates 100')}"
    words = f"throughput --cases {case} {more}"
    return Row(name, work, least, (SPEED, "ratio"), shlex.split(words), shlex.split(toy), seconds=400, gpus=gpus)


def sharding(name: str, work: str, least: str, words: str, title: str) -> Row:
    """A part of benchmarks/sharding.py, whose lines begin with a title."""
    given = ["sharding", *shlex.split(words)]
    toy = [*given, "--cpu", "--batches", "2"]
    return Row(name, work, least, (), given, toy, gpus=2, title=title)


def first_update(name: str, work: str, least: str, case: str, toy: str, more: str = "", seconds: int = 300) -> Row:
    """Seconds to the first update; ``more`` comes after the case."""
    columns = ("caches", "first update begins", "first update ends")
    words = f"first_update --case {case} {more}"
    small = f"first_update --case {toy} --device cpu --vocab-size 100 {more}"
    return Row(name, work, least, columns, shlex.split(words), shlex.split(small), seconds)


def dilated(heads: int, *more: str) -> Row:
    """Dilated attention alone."""
    name, words = f"dilated-{heads}{'-not-causal' * bool(more)}", shlex.join(["--heads", str(heads), *more])
    return Row(
        name,
        f"dilated attention, {heads} heads of 64{', not causal' * bool(more)}",
        "250 TFLOP/s from 131,072",
        ("side", "time", "utilisation"),
        shlex.split(f"dilated --device cuda --sides ours --lengths 131072 262144 {words}"),
        shlex.split(f"dilated --sides ours --lengths 2048 --repeats 1 {words}"),
    )


EXPERTS = "--updates 150 -- --optimizer adam --criterion moe_linear_cross_entropy --moe-dropless --moe-freq 2"
EXPERTS += " --moe-expert-count"
FULLY_SHARDED = "-- --optimizer adam --ddp-backend fully_sharded --checkpoint-activations"
XPOS = "-- --optimizer adam --xpos-scale-base 16384"
LONG = f"--updates 100 {XPOS}"
LONGEST = f"--updates 30 --interval 10 {XPOS}"
"""Updates of dense attention over 131,072 tokens take seconds."""
BASE = "base:16x1024"

TRAINING = [
    throughput("base", "12 x 768, 16 x 1,024, against a plain loop", "1.0; 40 % of 989 TFLOP/s", BASE, alone=False),
    throughput("base-64", "12 x 768, 64 x 1,024, likewise", "1.0; 42 %", "base:64x1024", "--updates 100", alone=False),
    throughput(
        "medium", "24 x 1,024, 32 x 1,024, likewise", "1.0; 44 %", "medium:32x1024", "--updates 100", alone=False
    ),
    throughput("xl", "24 x 2,048, 8 x 2,048, likewise", "1.0; 50 %", "xl:8x2048", "--updates 100", alone=False),
    *(
        throughput(family, f"{family}, 12 x 768", "slowest 0.9 of the fastest, base among them", f"{BASE},{family}")
        for family in ("gpt_deepnorm", "gpt_xpos", "bert_magneto")
    ),
    throughput("fp16", "base with --fp16", "0.95 of base", f"{BASE},fp16"),
    throughput("update-freq", "base with --update-freq 4", "1.05 of base", f"{BASE},update-freq=4", "--updates 100"),
    throughput("dropout", "base with dropout 0.1", "0.9 of base", f"{BASE},dropout=0.1"),
    throughput("two-gpus-base", "base on each of two GPUs", "0.9 of twice base", f"{BASE},gpus=2", gpus=2),
    throughput(
        "two-gpus-xl", "xl on each of two GPUs", "0.95 of twice xl", "xl:8x2048,gpus=2", "--updates 100", gpus=2
    ),
    Row(
        "translation",
        "mt_deepnorm against stock transformer, --fp16, training and beam search",
        "1.5; 2",
        ("mt_deepnorm", "compiled"),
        ["translation", "DATA"],
        ["translation", "DATA", *shlex.split("--device cpu --small --max-tokens 512 --updates 100")],
        seconds=590,
    ),
    Row(
        "sampling",
        "512 tokens of gpt_deepnorm and RetNet, 125M and 1.3B, batch 1 and 16",
        "3 times usual steps",
        ("steps", "speed", "times the first"),
        shlex.split("decoding --sentences 0"),
        shlex.split(
            "decoding --device cpu --models gpt_deepnorm_small --batches 1 --tokens 4 --sentences 0 --repeats 1"
        ),
        seconds=590,
    ),
    first_update(
        "start-7b",
        "retnet_7b built on one GPU, fully sharded",
        "first update begins within 60 s",
        "7b:1x2048,retnet,eager",
        "small:1x8,retnet,eager",
        f"--runs 1 --updates 2 {FULLY_SHARDED}",
    ),
]

ARCHITECTURES = [
    Row(
        "retention",
        "retention layer, width 2,048, forward and backward, against fla's",
        "1.0, goal 1.15",
        ("side", "time"),
        shlex.split("retention train --device cuda"),
        shlex.split("retention train --lengths 64 --width 64 --value-width 128 --heads 2 --repeats 1"),
        seconds=590,
    ),
    Row(
        "packed",
        "packed documents against rows",
        "0.9 (RetNet), 0.95",
        ("speed of packed rows",),
        ["packed_documents"],
        shlex.split(
            "packed_documents --device cpu --dtype float32 --layers 1 --width 256 --batch 1 --length 64 --repeats 1"
        ),
        seconds=500,
    ),
    Row(
        "retention-inputs",
        "retention layer with padding, documents and a state, against plain rows",
        "0.9",
        ("rows with", "time", "speed of plain rows"),
        ["retention_inputs"],
        shlex.split("retention_inputs --device cpu --lengths 64 --width 64 --value-width 128 --heads 2 --repeats 1"),
    ),
    first_update(
        "first-update",
        "retnet_xl, 8,192 tokens, from the start of fairseq-train",
        "first update ends within 60 s; later runs gain",
        "xl:1x8192,retnet",
        "small:1x8,retnet",
    ),
    throughput("retnet-xl", "retnet_xl, 8,192 tokens", "1.1 of the next", "xl:1x8192,retnet", "--updates 100"),
    throughput("gpt-xl-8k", "gpt_magneto_xl, 8,192 tokens", "", "xl:1x8192,gpt_magneto", "--updates 100"),
    Row(
        "decoding",
        "1.3B, 16 rows after 2,048 tokens: RetNet and gpt",
        "2; 3 times usual steps",
        ("steps", "speed", "times the first"),
        shlex.split(
            "decoding --sentences 0 --batches 16 --models gpt_deepnorm_xl retnet_xl --prompt 2048 --tokens 128 "
            "--repeats 1"
        ),
        shlex.split(
            "decoding --device cpu --models retnet_small --batches 2 --prompt 8 --tokens 4 --sentences 0 --repeats 1"
        ),
    ),
    Row(
        "bitnet-decoding",
        "1.3B, batch 1: BitNet b1.58 with packed weights and gpt, bf16",
        "1.5",
        ("steps", "speed"),
        shlex.split(
            "decoding --sentences 0 --batches 1 --models gpt_magneto_xl bitnet_1_3b:packed --precision bfloat16 "
            "--tokens 128 --repeats 1"
        ),
        shlex.split(
            "decoding --device cpu --models bitnet_small:packed --batches 1 --tokens 4 --sentences 0 --repeats 1"
        ),
    ),
    Row(
        "dilated",
        "dilated attention, paper's branches, and dense flash attention",
        "250 TFLOP/s from 131,072; 1.0 at 16,384; 1.8 at 32,768",
        ("side", "time", "utilisation"),
        shlex.split("dilated --device cuda --sides dense ours --lengths 16384 32768 131072 --repeats 3"),
        shlex.split("dilated --lengths 2048 --repeats 1"),
        seconds=590,
    ),
    *(dilated(heads, *more) for heads in (8, 12) for more in ((), ("--not-causal",))),
    throughput("longnet", "longnet 12 x 768, 32,768 tokens", "1.5 of dense-32k", "base:1x32768,longnet", LONG),
    throughput("dense-32k", "gpt_xpos 12 x 768, 32,768 tokens", "", "base:1x32768,gpt_xpos", LONG),
    throughput("longnet-128k", "longnet, 131,072 tokens", "5 of dense-128k", "base:1x131072,longnet", LONGEST),
    throughput("dense-128k", "gpt_xpos, 131,072 tokens", "", "base:1x131072,gpt_xpos", LONGEST),
    Row(
        "longvit",
        "LongViT small, training step, and dense attention",
        "1.0",
        ("side", "time"),
        shlex.split("longvit --device cuda --sizes 1024 2048 4096 --repeats 15"),
        shlex.split("longvit --sizes 256 --repeats 1 --threads 1"),
    ),
    Row(
        "images",
        "ViT-Base, 224 pixels, batches of 128, and a compiled loop over timm's",
        "1.0",
        ("images/s", "of timm's"),
        shlex.split("images --parts training"),
        shlex.split(f"images --parts training {TOY_IMAGES} --updates 100 --ours-alone"),
        seconds=400,
    ),
    Row(
        "images-loader",
        "the loader of photographs for ViT-Base, 16 workers",
        "1.0 of the training",
        ("images/s",),
        shlex.split("images --parts loader"),
        shlex.split(f"images --parts loader {TOY_IMAGES}"),
    ),
    Row(
        "experts-layer",
        "layer with 32 experts, top-2, 40,960 tokens",
        "250 TFLOP/s",
        ("TFLOP/s",),
        ["experts_gpu"],
        shlex.split("experts_gpu --device cpu --tokens 64 --width 16 --inner 32 --experts 4 --repeats 1"),
    ),
    throughput("experts", "12 x 768 with 32 experts, 16 x 1,024", "25 % of 989 TFLOP/s", BASE, f"{EXPERTS} 32"),
    throughput("experts-64", "likewise, 64 x 1,024", "30 % of 989 TFLOP/s", "base:64x1024", f"{EXPERTS} 32"),
    throughput("experts-eager", "experts without --compile", "not above experts", f"{BASE},eager", f"{EXPERTS} 32"),
    throughput(
        "two-gpus-experts",
        "32 experts on two GPUs",
        "0.9 of half-experts per GPU",
        f"{BASE},gpus=2",
        f"{EXPERTS} 32",
        gpus=2,
    ),
    throughput("half-experts", "16 experts on one GPU", "", BASE, f"{EXPERTS} 16"),
    throughput("bitnet", "bitnet_1_3b, 8 x 2,048", "0.8 of xl", "xl:8x2048,bitnet", "--updates 100"),
]

SHARDING = [
    sharding("equality", "losses and norms of full sharding and of one GPU", "equal to 1e-6", "equality", "fully"),
    sharding(
        "speed", "1.3 billion, full sharding and DDP", "0.95", "speed --only compiled --batches 4,8,16,32", "1.4B"
    ),
    sharding("seven-gpt", "gpt, 7 billion", "40 % of 989", "seven --only gpt --batches 16 --updates 8", "gpt 7B"),
    sharding("seven-retnet", "retnet_7b", "40 % of 989", "seven --only retnet --batches 16 --updates 8", "retnet_7b"),
    sharding("thirteen", "13 billion, with recomputation", "20 updates", "thirteen --batches 4", "retnet_13b"),
    sharding("save", "stall of a save, 1.4 billion, the first and the second", "", "save --only 1.4B", "1.4B"),
    sharding("save-7b", "stall of a save, 7 billion", "", "save --only 7B", "gpt 7B"),
]

TABLES = {"training": TRAINING, "architectures": ARCHITECTURES, "sharding": SHARDING}
