"""Small tokenizers of the kinds that Hugging Face and tiktoken have, trained on made-up words."""

import base64
import random
from collections.abc import Iterable
from pathlib import Path

from tests.data.corpora import made_line
from torchscale_fairseq.data.text.tokenizers.tiktoken_file import byte_characters

SPELLED = "</s> <s> <unk> <pad> <mask>"
ODD = [
    *("", " ", "bar dis", "  a  b ", "a\tb\nc\r\n\n", "Hello, World's 12345 HELLO'LL", "naïve café n\u0303", SPELLED),
    *("🙂👩\u200d👩\u200d👧", "日本語テキスト", "<|endoftext|> [MASK] [UNK]", "x" * 300, "a" + 50 * " " + "b"),
    *("\u00a0nbsp\u00a0", "\x00nul\x01", "\ufeffbom", "https://x.y/z?q=1&r=%20\n\n\n  z", "İı ß ẞ مرحبا"),
]
"""Texts that tokenizers stumble over."""


def _lines() -> list[str]:
    generator = random.Random(7)
    return [made_line(generator) for _ in range(300)]


def byte_level(path: Path) -> Path:
    """As GPT-2's: pieces of bytes, and a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    tokenizer.save(str(path))
    return path


def word_piece(path: Path) -> Path:
    """As BERT's: pieces of words, an unknown piece, special tokens and a template."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(path))
    return path


def unigram(path: Path) -> Path:
    """As T5's: pieces with scores, fairseq's special symbols among them, and an added token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.add_tokens(["Hello"])
    tokenizer.save(str(path))
    return path


def ranks_of(tokens: Iterable[bytes], path: Path) -> Path:
    """A file of tiktoken."""
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)))
    return path


def tiktoken_file(path: Path) -> Path:
    """A file of tiktoken with the pieces of the byte-level tokenizer."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(byte_level(path.with_suffix(".json")))).get_vocab()
    path.with_suffix(".json").unlink()
    byte_of = {character: byte for byte, character in byte_characters().items()}
    pieces = sorted(set(vocabulary) - {"<|endoftext|>"}, key=vocabulary.__getitem__)
    return ranks_of((bytes(byte_of[character] for character in piece) for piece in pieces), path)


KINDS = {
    "byte_level": ("tokenizer.json", byte_level),
    "word_piece": ("tokenizer.json", word_piece),
    "unigram": ("tokenizer.json", unigram),
    "tiktoken": ("cl100k_base.tiktoken", tiktoken_file),
}
