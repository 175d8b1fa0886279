"""Fast tokenizers give the numbers that SentencePiece and fairseq's dictionary give."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")

import sentencepiece
from fairseq.data import Dictionary

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.export.huggingface.fast_tokenizer import make_tokenizer, pieces_beyond
from torchscale_fairseq.export.huggingface.kinds import CAUSAL, MASKED, TRANSLATION
from torchscale_fairseq.export.huggingface.sentencepiece_model import read_model

ODD = [
    *("", " ", "  a  b ", "a\tb\nc", "Hello, world!", "naïve café", "n\u0303", "ﬁ ligature ½ ①", "日本語テキスト"),
    *("🙂👩\u200d👩\u200d👧 emoji", "\u200b zero\u200bwidth", "\u3000full\u3000width", "▁meta ▁▁ x", "▁", "a▁b"),
    *("</s> <s> <unk> <pad>", "<0x41> <0xE2>", "x" * 300, "AAAAA" + 50 * " " + "b", "0123456789 1,000.5"),
    *("\u00a0nbsp\u00a0", "\ufeffbom", "\x00nul\x01", "Ünïcödé ﷺ", "\uff26\uff35\uff2c\uff2c", "\r\n", "a\u2028b"),
    *("-- '' \"\" `` ...", "https://x.y/z?q=1&r=%20", "مرحبا", "한국어", "ก็", "İı ß ẞ", "\U0001f1e9\U0001f1ea"),
]
LETTERS = "abcdefghij  .,"
OWN = "<own>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(1)
    lines = ["".join(generator.choices(LETTERS, k=30)) for _ in range(400)] + ["Hello <x> </s> café 0123456789"] * 9
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(lines))
    return path


def train(corpus: Path, folder: Path, **how: Any) -> Path:
    settings = {"vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 2, **how}
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "pieces"), **settings)
    return folder / "pieces.model"


def dictionary_of(model: Any, leave_out: Sequence[str] = ()) -> Dictionary:
    dictionary = Dictionary()
    for number in range(model.get_piece_size()):
        piece = model.id_to_piece(number)
        if not (model.is_control(number) or model.is_unknown(number) or piece in leave_out):
            dictionary.add_symbol(piece)
    return dictionary


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"model_type": "bpe"},
        {"byte_fallback": True, "vocab_size": 350},
        {"normalization_rule_name": "identity"},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"user_defined_symbols": OWN},
        {"split_by_whitespace": False},
    ],
    ids=lambda how: "-".join(map(str, how.values())) or "unigram",
)
def test_numbers_are_those_of_sentencepiece(how: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    path = train(corpus, tmp_path, **how)
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    dictionary = dictionary_of(model)
    tokenizer = make_tokenizer(dictionary.symbols, path, TRANSLATION)
    tokenizer.encode_special_tokens = True
    generator = random.Random(2)
    lines = ["".join(generator.choices(LETTERS + "äλя🙂½", k=25)) for _ in range(100)]
    for text in [*ODD, *lines, f"a {OWN} b{OWN}"]:
        expected = [dictionary.index(piece) for piece in model.encode(text, out_type=str)]
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, repr(text)


def test_decoding_gives_the_text(corpus: Path, tmp_path: Path) -> None:
    path = train(corpus, tmp_path, byte_fallback=True, vocab_size=350)
    dictionary = dictionary_of(sentencepiece.SentencePieceProcessor(model_file=str(path)))
    tokenizer = make_tokenizer(dictionary.symbols, path, TRANSLATION)
    assert tokenizer.decode(tokenizer.encode("Hello, 日本 café").ids) == "Hello, 日本 café"


@pytest.mark.parametrize(("kind", "expected"), [(CAUSAL, [2, 4]), (MASKED, [0, 4, 2]), (TRANSLATION, [4, 2])])
def test_special_tokens_are_those_of_the_tasks(kind: Any, expected: list[int]) -> None:
    assert make_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "w"], None, kind).encode("w").ids == expected


def test_pieces_that_the_dictionary_lacks_become_unknown(corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from torchscale_fairseq.export.huggingface.tokenizer import CoreTokenizer

    path = train(corpus, tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    dictionary = dictionary_of(model, leave_out="ab")
    assert set(pieces_beyond(dictionary.symbols, read_model(path))) == {"a", "b"}
    make_tokenizer(dictionary.symbols, path, TRANSLATION).save(str(tmp_path / "tokenizer.json"))
    tokenizer = CoreTokenizer(
        tokenizer_file=str(tmp_path / "tokenizer.json"), unk_token="<unk>", dictionary_size=len(dictionary)
    )
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    text = "xaxbxa a b"
    expected = [dictionary.index(piece) for piece in model.encode(text, out_type=str)]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert 3 in expected


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pieces").write_bytes(b"\x0a\xff no model")
    with pytest.raises(InputError, match="is not a SentencePiece model"):
        read_model(tmp_path / "pieces")
    with pytest.raises(InputError, match="--sentencepiece"):
        make_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "▁w"], None, CAUSAL)
