"""Cases of benchmarks/throughput.py: ``SIZE:SEQUENCESxTOKENS``, then any of these, each after a comma.

gpt_deepnorm, gpt_xpos, bert_magneto, ...   the family
fp16, bf16, float32                         the precision
eager                                       without --compile
update-freq=4  dropout=0.1  gpus=2          as of fairseq-train (--update-freq, --dropout, --distributed-world-size);
                                            BERT's --attention-dropout is the --dropout
"""

import argparse
import re
from dataclasses import dataclass
from typing import Any

FAMILIES = ("gpt_magneto", "gpt_deepnorm", "gpt_xpos", "bert_magneto", "retnet", "longnet", "bitnet")
PRECISIONS = ("bf16", "fp16", "float32")
SIZES = {
    "small": (4, 256, 4),
    "base": (12, 768, 12),
    "medium": (24, 1024, 16),
    "xl": (24, 2048, 16),
    "7b": (32, 4096, 32),
}
"""Layers, width and heads, as models/_presets.py has them; the inner width is four times the width."""
ARCHS = {"retnet_base": "retnet_base", "bitnet_xl": "bitnet_1_3b"}
"""Names of architectures where they are not FAMILY_SIZE, or FAMILY for the base size."""
CAUSAL = ["--task", "language_modeling", "--criterion", "linear_cross_entropy", "--share-decoder-input-output-embed"]
MASKED = ["--task", "masked_lm", "--criterion", "masked_lm", "--sample-break-mode", "none"]


@dataclass(frozen=True)
class Case:
    """A size, a batch, and what differs from the options of the command."""

    size: str
    sequences: int
    length: int
    family: str = ""
    precision: str = ""
    update_freq: int = 1
    dropout: float | None = None
    gpus: int = 1
    eager: bool = False
    more: str = ""
    """All of these as they were typed."""

    @classmethod
    def of(cls, text: str) -> "Case":
        """A case as it is typed.

        Raises:
            argparse.ArgumentTypeError: it is none.
        """
        first, _, more = text.partition(",")
        match = re.fullmatch(r"(\w+):(\d+)x(\d+)", first)
        if match is None or match[1] not in SIZES:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not SIZE:SEQUENCESxTOKENS with a size among {', '.join(SIZES)}; try base:16x1024"
            )
        variants: dict[str, Any] = dict(map(_variant, filter(None, more.split(","))))
        return cls(match[1], int(match[2]), int(match[3]), **variants, more=more)

    @property
    def tokens(self) -> int:
        """In a batch."""
        return self.sequences * self.length

    @property
    def tokens_of_update(self) -> int:
        """In an update, of all GPUs."""
        return self.tokens * self.update_freq * self.gpus

    @property
    def text_of_update(self) -> int:
        """Tokens of text that fill the samples of an update. fairseq's masked_lm begins each sample with <s>."""
        return self.tokens_of_update // self.length * (self.length - self.is_masked)

    @property
    def title(self) -> str:
        """In the table."""
        layers, width, _ = SIZES[self.size]
        return ", ".join(
            filter(None, (f"{layers} x {width}", f"{self.sequences} x {self.length:,}", *self.more.split(",")))
        )

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.size}_{self.tokens}{self.more and '_' + self.more.replace(',', '_')}"

    @property
    def is_masked(self) -> bool:
        """Trained to predict masked tokens."""
        return self.family.startswith("bert")

    @property
    def has_known_flops(self) -> bool:
        """The model's operations are those of a dense causal decoder."""
        return self.family in ("", "gpt_magneto", "gpt_deepnorm", "gpt_xpos")

    @property
    def is_plain(self) -> bool:
        """The plain loop trains the model in this way."""
        return self.more in ("", self.family) and self.family in ("", "gpt_magneto", "gpt_deepnorm")

    def words(self, options: argparse.Namespace) -> list[str]:
        """The arguments of fairseq-train that say what is trained, in which batches and how."""
        family = self.family or options.family
        arch = f"{family}_{self.size}"
        arch = ARCHS.get(arch, family if self.size == "base" else arch)
        words = [*(MASKED if self.is_masked else CAUSAL), "--arch", arch]
        words += ["--max-source-positions", str(self.length)] if self.is_masked else []
        words += ["--tokens-per-sample", str(self.length), "--batch-size", str(self.sequences)]
        dropout = str(options.dropout if self.dropout is None else self.dropout)
        words += ["--dropout", dropout]
        words += ["--attention-dropout", dropout] if self.is_masked else []  # which only BERT's presets have
        words += ["--update-freq", str(self.update_freq), "--distributed-world-size", str(self.gpus)]
        precision = self.precision or options.precision
        return words if precision == "float32" else [*words, f"--{precision}"]


def _variant(text: str) -> tuple[str, str | float]:
    """A field of a case and its value.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if text in FAMILIES:
        return "family", text
    if text in PRECISIONS:
        return "precision", text
    if text == "eager":
        return text, True
    match = re.fullmatch(r"(update-freq|gpus)=([1-9]\d*)|dropout=(0?\.\d+|0)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join((*FAMILIES, *PRECISIONS))}, eager, update-freq=N, dropout=P and gpus=N; "
            "try fp16"
        )
    return ("dropout", float(match[3])) if match[3] else (match[1].replace("-", "_"), int(match[2]))
