"""Making small corpora of made-up words."""

import json
import random
from pathlib import Path
from typing import Any

import sentencepiece

from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.blocks import BREAK_MODES
from torchscale_fairseq.data.text.corpus import Corpus
from torchscale_fairseq.data.text.masking import Masking
from torchscale_fairseq.data.text.order import SampleOrder
from torchscale_fairseq.data.text.pieces import TextEncoder
from torchscale_fairseq.data.text.pretraining_dataset import PretrainingDataset
from torchscale_fairseq.data.text.tokenizers import dictionary_in, tokenizer_of

WORDS = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in "rst"]
LINES = {"a": 211, "b": 97, "c": 150}
"""Lines of the shards of the training text."""


def made_corpus(data: Path) -> Path:
    """A tokenizer of 380 pieces, three shards for train, one for valid; a line in seven ends a document."""
    generator = random.Random(5)
    for split, sizes in (("train", LINES), ("valid", {"v": 40})):
        for name, size in sizes.items():
            lines = [made_line(generator) + ("\n" if place % 7 == 6 else "") for place in range(size)]
            path = data / "shard" / split / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
    write_json(data, "train", [{"source": [f"shard/train/{name}.txt" for name in LINES], "source_lang": "en"}])
    write_json(data, "valid", [{"source": ["shard/valid/v.txt"], "source_lang": "en", "weight": 1.0}])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([made_line(generator) for _ in range(2000)]),
        model_prefix=str(data / "sentencepiece.bpe"),
        vocab_size=380,
        byte_fallback=True,
        user_defined_symbols=["<mask>"],
        normalization_rule_name="identity",
        minloglevel=2,
    )
    write_dictionary(data)
    return data


def made_line(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(1, 14)))


def write_json(data: Path, split: str, sources: list[dict[str, Any]]) -> None:
    path = data / "json" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sources))


def write_dictionary(data: Path, leave_out: int = 0) -> None:
    """dict.txt of the tokenizer beside it."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model"))
    pieces = [tokenizer.id_to_piece(number) for number in range(3 + leave_out, tokenizer.get_piece_size())]
    (data / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")


def slow_documents(data: Path) -> list[list[int]]:
    """The tokens of each document of the training text by fairseq's rule: each line's pieces, as the dictionary numbers
    them, and </s>."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model"))
    documents: list[list[int]] = []
    for name in LINES:
        for document in (data / f"shard/train/{name}.txt").read_text().split("\n\n"):
            lines = [tokenizer.encode(line) for line in document.splitlines() if line]
            documents.append([token for pieces in lines for token in (*(piece + 1 for piece in pieces), 2)])
    return [document for document in documents if document]


def opened(
    data: Path,
    split: str = "train",
    *,
    capacity: int = 31,
    break_mode: str = BREAK_MODES[1],
    read_ahead: int = 40,
    seed: int | None = 3,
    skip: bool = False,
    masking: Masking | None = None,
    index_dir: Path | None = None,
    packed: bool = False,
) -> PretrainingDataset:
    """A split as the task opens it; causal unless there is a masking."""
    problems = Problems(skip=skip)
    pieces = tokenizer_of(str(data), None)
    dictionary = dictionary_in(str(data))
    encoder = TextEncoder(pieces, dictionary, data / "dict.txt", problems)
    corpus = Corpus(
        *(data, split, pieces),
        capacity=capacity,
        break_mode=break_mode,
        problems=problems,
        index_dir=index_dir,
        room_for_bos=packed and masking is not None,
    )
    order = SampleOrder(corpus.samples, corpus.weights, read_ahead=read_ahead, seed=seed)
    return PretrainingDataset(corpus, order, encoder, dictionary, masking=masking, seed=seed or 0, packed=packed)
