"""torchscale-fairseq fill-masks and answer with every tokenizer that --task pretraining reads."""

import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("sentencepiece")
pytest.importorskip("tokenizers")

import torch
from fairseq.data.dictionary import Dictionary

from tests.data.corpora import made_corpus
from tests.data.tokenizer_files import KINDS
from tests.plugin.shrunk import shrunk
from tests.tools.in_process import run_tool
from tests.tools.untrained import write_untrained
from torchscale_fairseq.data.text.pieces import PieceEncoder
from torchscale_fairseq.data.text.tokenizers import dictionary_of, open_tokenizer
from torchscale_fairseq.data.text.tokenizers.masked_text import Spelling, masked_text_encoder
from torchscale_fairseq.models._hubs import masked_pieces

MASKED = [*shlex.split("--task pretraining --criterion masked_lm --max-source-positions 32"), *shrunk("bert_magneto")]
CAUSAL = [*shlex.split("--task instruction_tuning --tokens-per-sample 64"), *shrunk("gpt_deepnorm")]
TEXT = "bar dis <mask>. gas <mask> kir"


def written(kind: str, folder: Path) -> Path:
    """A tokenizer in a data directory that has no dict.txt."""
    name, write = KINDS[kind]
    return write(folder / name)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("tiktoken", tmp_path_factory.mktemp("tiktoken"))


def test_masks_are_filled(tokenizer: Path, tmp_path: Path) -> None:
    checkpoint = write_untrained(tmp_path / "checkpoint.pt", tokenizer.parent, *MASKED, "--tokens-per-sample", "32")
    words = ["--checkpoint", checkpoint, "--data", tokenizer.parent, "--top-k", 2]
    done = run_tool("fill-masks", *words, stdin=f"{TEXT}\n").check()
    text, *rows = [line for line in done.stdout.splitlines() if " | INFO | " not in line]
    assert text == TEXT and len(rows) == 2 and all(row.count("%") == 2 for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_between_masks_are_tokenized_as_in_training(kind: str, tmp_path: Path) -> None:
    """A mask stands for a word and the space before it."""
    found = open_tokenizer(str(written(kind, tmp_path)))
    pieces = found.pieces()
    before, after = ([pieces[number] for number in found([text])[0]] for text in (b"bar dis", b" gas kir"))
    assert masked_text_encoder(found)("bar dis <mask> gas kir") == [*before, "<mask>", *after]


def test_text_is_encoded_into_pieces(tokenizer: Path) -> None:
    """For fairseq-preprocess; a byte that is no text is named."""
    found = open_tokenizer(str(tokenizer))
    done = run_tool("data", "encode-text", "--model", tokenizer, stdin="bar dis\ngas\n").check()
    pieces = [[found.pieces()[number] for number in found([text])[0]] for text in (b"bar dis", b"gas")]
    assert [line.split(" ") for line in done.stdout.splitlines()] == pieces
    refused = run_tool("data", "encode-text", "--model", tokenizer.with_name("none"), stdin="bar")
    assert refused.returncode == 1 and "encode-text: cannot read --model " in refused.last_line


def test_a_named_tokenizer_answers(tokenizer: Path, tmp_path: Path) -> None:
    """That of the training, which lies elsewhere, and one that is named."""
    (tmp_path / "data").mkdir()
    trained = [tmp_path / "data", *CAUSAL, "--tokenizer-file", tokenizer]
    checkpoint = write_untrained(tmp_path / "checkpoint.pt", *trained)
    words = ["answer", "--checkpoint", checkpoint, "--data", tmp_path / "data", "--max-tokens", 2]
    prompts = [
        json.dumps({"prompt": "bar"}),
        json.dumps({"text": "bar"}),
        json.dumps({"prompt": "a", "completion": "b"}),
    ]
    done = run_tool(*words, "--tokenizer-file", tokenizer, stdin="\n".join(prompts))
    assert done.returncode == 1 and '"completion"' in done.stdout
    refused = [line.partition(": ")[2] for line in done.stderr.splitlines() if ": line " in line]
    assert refused == [
        'line 2: the prompt has the fields text; give "prompt", or "messages", a list of objects with "role" and '
        '"content".',
        "line 3: the conversation ends with an answer already; leave it out.",
    ]
    assert run_tool(*words, stdin=prompts[0]).check().stdout.count("completion") == 1


def test_a_sentencepiece_model_need_not_know_the_mask(tmp_path: Path) -> None:
    """The symbols around masks are those of a model with the piece <mask>."""
    corpus = made_corpus(tmp_path / "data")
    known = PieceEncoder(corpus / "sentencepiece.bpe.model")
    content = Path(known.path).read_bytes()
    (tmp_path / "bare.model").write_bytes(content.replace(b"<mask>", b"<musk>"))
    bare = PieceEncoder(tmp_path / "bare.model")
    assert "<mask>" in known.pieces() and "<mask>" not in bare.pieces()
    assert masked_text_encoder(bare)(TEXT) == masked_text_encoder(known)(TEXT)
    assert masked_text_encoder(bare)("<mask> bar")[0] == "<mask>"


def test_fill_mask_reads_a_text_as_the_command_does(tmp_path: Path) -> None:
    """Punctuation after a mask begins no word."""
    pieces = PieceEncoder(made_corpus(tmp_path / "data") / "sentencepiece.bpe.model")
    known = pieces.pieces()
    for text in ("bar dis <mask>.", "<mask> gas", "bar<mask>dis"):
        found = masked_pieces(lambda part: " ".join(known[n] or "" for n in pieces([part.encode()])[0]), text)
        assert found.split() == masked_text_encoder(pieces)(text)


@pytest.mark.parametrize(
    ("pieces", "spelled"),
    [
        ({"\u2581bar": "bar", "dis": "...dis", ".": ".", "</s>": "</s>"}, "SentencePiece"),
        ({"\u0120bar": "bar", "dis": "...dis", "\u0120d\u00c3\u00a9": "d\u00e9", ".": "."}, "bytes"),
        ({"bar": "bar", "##dis": "...dis", "[CLS]": "[CLS]"}, "WordPiece"),
    ],
)
def test_pieces_are_spelled_for_people(pieces: dict[str, str], spelled: str) -> None:
    assert {piece: Spelling(pieces)(piece) for piece in pieces} == pieces, spelled


def test_unknown_pieces_are_those_of_the_dictionary(tmp_path: Path) -> None:
    found = open_tokenizer(str(written("word_piece", tmp_path)))
    dictionary: Dictionary = dictionary_of(found.pieces(), found.unknown())
    numbers = torch.tensor([dictionary.index(symbol) for symbol in masked_text_encoder(found)("\u65e5 bar")])
    assert numbers[0] == dictionary.unk() and dictionary.unk() not in numbers[1:]
