"""Models of --task pretraining with fast tokenizers and tiktoken's files: reading, evaluating, exporting."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("tokenizers")

import torch
from fairseq.models import MODEL_REGISTRY

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.data.corpora import made_line, opened
from tests.data.tokenizer_files import KINDS, ODD, SPELLED
from tests.fairseq_cli import FEW_UPDATES, run_fairseq
from tests.plugin.shrunk import shrunk
from tests.tools.in_process import run_tool
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.pieces import TextEncoder
from torchscale_fairseq.data.text.tokenizers import Tokenizer, dictionary_of, open_tokenizer, tokenizer_of
from torchscale_fairseq.data.text.tokenizers.tiktoken_file import PATTERNS, _ranks
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.huggingface.fast_tokenizer import make_tokenizer
from torchscale_fairseq.export.huggingface.kinds import CAUSAL


@pytest.fixture(scope="module", params=KINDS)
def tokenizer_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer of each kind."""
    name, make = KINDS[request.param]
    return make(tmp_path_factory.mktemp(request.param) / name)


@pytest.fixture(scope="module")
def data(tokenizer_file: Path) -> Path:
    """JSON lines next to the tokenizer, with odd texts among the documents, and no dict.txt."""
    generator = random.Random(2)
    texts = [" ".join(made_line(generator) for _ in range(4)) for _ in range(60)] + ODD
    for split in ("train", "valid", "test"):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tokenizer_file.parent / f"{split}.jsonl").write_text(lines)
    return tokenizer_file.parent


def encoder_of(tokenizer: Tokenizer) -> tuple[TextEncoder, Any]:
    dictionary = dictionary_of(tokenizer.pieces(), tokenizer.unknown())
    return TextEncoder(tokenizer, dictionary, "the tokenizer's", Problems(skip=False)), dictionary


def test_the_dictionary_follows(tokenizer_file: Path) -> None:
    """fairseq's four symbols, then the tokenizer's pieces in their order, without those and its unknown piece."""
    tokenizer = open_tokenizer(str(tokenizer_file))
    encode, dictionary = encoder_of(tokenizer)
    four = ["<s>", "<pad>", "</s>", "<unk>"]
    unknown = tokenizer.pieces()[tokenizer.unknown()] if tokenizer.unknown() >= 0 else None
    rest = [piece for piece in tokenizer.pieces() if piece not in (*four, unknown)]
    assert dictionary.symbols == [*four, *rest]
    tokens, _ = encode([b"bar dis"])
    assert [dictionary[number] for number in tokens] == [tokenizer.pieces()[n] for n in tokenizer([b"bar dis"])[0]]
    assert tokenizer.decode(tokenizer([b"bar dis"])) == ["bar dis"]


def test_samples_hold_the_documents(data: Path) -> None:
    """Whole documents, nothing added, nothing truncated or padded, whatever tokenizer.json says."""
    dataset = opened(data, break_mode="none", seed=None)
    tokens = [number for row in dataset.batch(0, 0, len(dataset))["target"] for number in row[row != 1].tolist()]
    encode, _ = encoder_of(tokenizer_of(str(data), None))
    documents = [json.loads(line)["text"].encode() for line in (data / "train.jsonl").read_text().splitlines()]
    encoded = [encode([text])[0].tolist() for text in documents]
    assert tokens == [number for numbers in encoded if numbers for number in [*numbers, 2] if number != 1]


def test_text_is_read_with_any_tokenizer(data: Path, tmp_path: Path) -> None:
    """Shards of text give the same tokens as JSON lines of the same lines."""
    lines = ["bar dis", "gas mir", "", "bir"] * 9
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines if line))
    file = next(path for path in data.iterdir() if path.name in ("tokenizer.json", "cl100k_base.tiktoken"))
    (tmp_path / file.name).write_bytes(file.read_bytes())
    text, documents = (opened(tmp_path, split, break_mode="none", seed=None) for split in ("train", "valid"))
    assert text.batch(0, 0, len(text))["target"].equal(documents.batch(0, 0, len(documents))["target"])


def test_exported_tokenizers_give_the_same_numbers(tokenizer_file: Path) -> None:
    """But for special symbols that a text spells out, which are pieces of a Unigram model."""
    encode, dictionary = encoder_of(open_tokenizer(str(tokenizer_file)))
    exported = make_tokenizer(dictionary.symbols, tokenizer_file, CAUSAL)
    exported.encode_special_tokens = True
    kind = json.loads(exported.to_str())["model"]["type"]
    for text in (text for text in ODD if (text, kind) != (SPELLED, "Unigram")):
        assert exported.encode(text).ids == [2, *encode([text.encode()])[0].tolist()], text


def test_the_dictionary_of_an_export(tokenizer_file: Path) -> None:
    symbols = encoder_of(open_tokenizer(str(tokenizer_file)))[1].symbols
    found = Dictionaries(tokenizer_file.parent)
    assert found.symbols({}, "target", len(symbols)) == symbols
    assert found.symbols({}, "target", len(symbols) + 1) == [*symbols, "<mask>"]
    with pytest.raises(InputError, match=rf"has {len(symbols)} symbols and the checkpoint's target embedding 7 rows"):
        found.symbols({}, "target", 7)


@pytest.mark.parametrize("encoding", ["gpt2", "cl100k_base", "o200k_base"])
def test_numbers_of_tiktoken(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of the package, with its own pattern."""
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken_ext import openai_public

    file = KINDS["tiktoken"][1](tmp_path / f"{encoding}.tiktoken")
    ranks = _ranks(file.read_bytes(), str(file))
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: ranks)
    pattern = getattr(openai_public, encoding)()["pat_str"]
    theirs = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ours = open_tokenizer(str(file))
    assert ours([text.encode() for text in ODD]) == [theirs.encode_ordinary(text) for text in ODD]
    assert encoding in PATTERNS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "tokenizer.json is not the tokenizer.json of a fast tokenizer"),
        ("own.tiktoken", b"IQ== 0\n", "own.tiktoken does not say how its encoding splits words; give the file a name"),
        ("gpt2.tiktoken", b"IQ== 0\nI\n", "gpt2.tiktoken, line 2: is not a token in base64, a space and a rank"),
        ("gpt2.tiktoken", b"IQ== 0\n", "gpt2.tiktoken has no token for the byte 0x00; it is truncated"),
        ("a.model", b"no model", "a.model is not a SentencePiece model"),
    ],
)
def test_broken_tokenizers(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_tokenizer(str(tmp_path / name))


def test_two_tokenizers_in_a_folder(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "gpt2.tiktoken"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"tokenizer.json and .*gpt2.tiktoken are both tokenizers; name one of"):
        tokenizer_of(str(tmp_path), None)


def test_a_model_finds_its_tokenizer_again(tmp_path: Path) -> None:
    """Trained by the command, exported, loaded: the same tokens, logits and continuation."""
    transformers = pytest.importorskip("transformers")
    generator = random.Random(2)
    file = KINDS["tiktoken"][1](tmp_path / "r50k_base.tiktoken")
    for split in ("train", "test"):
        lines = [json.dumps({"body": made_line(generator)}) + "\n" for _ in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    same = ["--task", "pretraining", "--cpu", "--tokens-per-sample", 32, "--text-field", "body", "--batch-size", 8]
    words = [tmp_path, *same, *shrunk("gpt_deepnorm"), *FEW_UPDATES, "--disable-validation", "--no-epoch-checkpoints"]
    run_fairseq("train", [*words, "--save-dir", tmp_path / "run"]).check()
    checkpoint = tmp_path / "run/checkpoint_last.pt"
    printed = run_fairseq("eval_lm", [tmp_path, *same, "--path", checkpoint, "--gen-subset", "test"]).check().output
    (tmp_path / "log").write_text(printed)
    run_tool("perplexity", tmp_path / "log", "--data", tmp_path, "--text-field", "body").check()
    run_tool("export", "hf", checkpoint, tmp_path / "hf").check()
    hub = MODEL_REGISTRY["gpt_deepnorm"].from_pretrained(str(tmp_path / "run"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    tokens = tokenizer("bar dis", return_tensors="pt")["input_ids"]
    assert hub.encode("bar dis").tolist() == [*tokens[0, 1:].tolist(), 2]
    assert hub.decode(hub.encode("bar dis")) == "bar dis" and file.name in str(hub.cfg.bpe)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, hub.models[0](tokens)[0])
    assert hub.sample("bar dis", beam=1, max_len_b=20).startswith("bar dis")
