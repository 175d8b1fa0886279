"""Instruction data: conversations to tokens, by a chat template and without one, and the loss on answers alone."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.formats import FORMATS, write_conversations
from torchscale_fairseq.data.instructions.chat import PlainChat, TemplateChat, chat_of
from torchscale_fairseq.data.instructions.conversations import conversation_files, read_conversations
from torchscale_fairseq.data.instructions.dataset import InstructionDataset
from torchscale_fairseq.data.instructions.encoding import ConversationEncoder, Example
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.pieces import PieceEncoder, TextEncoder, load_dictionary

PAD, EOS = 1, 2
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "<end>"}
TWO_TURNS = [
    {"role": "system", "content": "bar"},
    {"role": "user", "content": "dar fat"},
    {"role": "assistant", "content": "gas"},
    {"role": "user", "content": "kir"},
    {"role": "assistant", "content": "lot mus"},
]


@pytest.fixture(scope="module")
def text_encoder(corpus_folder: Path) -> TextEncoder:
    dictionary = load_dictionary(corpus_folder / "dict.txt", with_mask=False)
    pieces = PieceEncoder(corpus_folder / "sentencepiece.bpe.model")
    return TextEncoder(pieces, dictionary, corpus_folder / "dict.txt", Problems(skip=False))


def read(path: Path, *records: Any) -> list[list[dict[str, Any]]]:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return read_conversations(str(path), Problems(skip=False))


def tokens_of(encoder: TextEncoder, *texts: str) -> list[int]:
    """Pieces of each text, and </s> after it."""
    return [token for text in texts for token in [*encoder([text.encode()])[0].tolist(), EOS]]


def test_prompts_and_messages_are_conversations(tmp_path: Path) -> None:
    prompt, chat = {"prompt": "dar", "completion": "gas"}, {"messages": TWO_TURNS}
    found = read(tmp_path / "train.jsonl", prompt, "", chat)
    assert found == [[{"role": "user", "content": "dar"}, {"role": "assistant", "content": "gas"}], TWO_TURNS]


COLUMNS = [name for name in ("parquet", "saved") if name in FORMATS]


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_read_like_json_lines(name: str, tmp_path: Path) -> None:
    """In the same order, and without the fields of a struct that only other messages have."""
    records: list[dict[str, Any]] = [
        {"prompt": "dar", "completion": "gas"},
        {"messages": TWO_TURNS},
        {"messages": [{"role": "assistant", "content": "lot", "name": "a"}]},
    ]
    found = {}
    for given in ("json", name):
        data = tmp_path / given
        data.mkdir()
        write_conversations(records, data, given)
        files = conversation_files(str(data), "train")
        found[given] = [messages for file in files for messages in read_conversations(file, Problems(skip=False))]
    assert found[name] == found["json"] and len(found[name]) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "gas"}, r"row 2 has no column 'prompt' or 'messages' \(there: completion\)"),
        ({"prompt": "dar"}, "row 2: column 'completion' is null, not a text"),
        ({"messages": [{"role": "user"}]}, "row 2: column 'messages': message 1 has no role and content"),
        ({"messages": [{"role": "user", "content": "dar"}]}, "row 2 has no answer to learn"),
    ],
)
@pytest.mark.parametrize("name", COLUMNS)
def test_what_is_wrong_with_a_row(name: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The error names file, row and column."""
    good = {"prompt": "dar", "completion": "gas"}
    write_conversations([good, row, good], tmp_path, name)
    file, problems = conversation_files(str(tmp_path), "train")[0], Problems(skip=True)
    with pytest.raises(DataError, match=rf"{file}, {message}.* --skip-invalid"):
        read_conversations(file, Problems(skip=False))
    assert read_conversations(file, problems) and problems.counts == {"invalid rows": 1}


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_without_conversations(name: str, tmp_path: Path) -> None:
    write_conversations([{"text": "dar"}], tmp_path, name)
    with pytest.raises(DataError, match=r"no column 'messages' or 'prompt' .*\(there: text\); give \"prompt\""):
        read_conversations(conversation_files(str(tmp_path), "train")[0], Problems(skip=False))


def test_compressed_conversations(tmp_path: Path) -> None:
    """Are read whole; a truncated file is named, and two of which one may be the other's copy."""
    line = json.dumps({"prompt": "dar", "completion": "gas"}).encode()
    with pytest.raises(DataError, match=r"no conversations for the subset 'train'; give train.jsonl, train.parquet"):
        conversation_files(str(tmp_path), "train")
    path, content = tmp_path / "train.jsonl.gz", gzip.compress(line + b"\n\n" + line)
    path.write_bytes(content)
    assert conversation_files(str(tmp_path), "train") == [str(path)]
    assert len(read_conversations(str(path), Problems(skip=False))) == 2
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match=r"train.jsonl.gz, line \d: the compressed file ends too early"):
        read_conversations(str(path), Problems(skip=False))
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match=r"train.jsonl and .*train.jsonl.gz differ by their compression alone"):
        conversation_files(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2: is not JSON: Expecting"),
        ("[1]", "line 2: is a JSON array instead of an object"),
        (
            '{"text": "a"}',
            r"line 2 has no field 'prompt' or 'messages' \(there: text\); give .prompt. and .completion.",
        ),
        ('{"prompt": "a"}', "line 2 has no answer to learn"),
        ('{"prompt": 1, "completion": "b"}', "line 2: field 'prompt' is number, not a text"),
        ('{"prompt": "\\ud800", "completion": "b"}', "line 2: field 'prompt' has half of a surrogate pair"),
        ('{"messages": [{"role": "user"}]}', "line 2: field 'messages': message 1 has no role and content"),
        ('{"messages": []}', "line 2: field 'messages' must be a list of at least one object"),
    ],
)
def test_what_is_wrong_with_a_line(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"train.jsonl, {message}"):
        read(tmp_path / "train.jsonl", {"prompt": "a", "completion": "b"}, line)
    problems = Problems(skip=True)
    assert (
        len(read_conversations(str(tmp_path / "train.jsonl"), problems)) == 1 and problems.counts["invalid lines"] == 1
    )


def test_without_a_template_messages_are_lines(text_encoder: TextEncoder) -> None:
    encode = ConversationEncoder(text_encoder, PlainChat(), EOS)
    example = encode(PlainChat().segments([*TWO_TURNS, {"role": "user", "content": "never read"}]))
    assert example.tokens.tolist() == tokens_of(text_encoder, *(str(turn["content"]) for turn in TWO_TURNS))
    answers = tokens_of(text_encoder, "gas"), tokens_of(text_encoder, "lot mus")
    assert example.tokens[example.learned].tolist() == [*answers[0], *answers[1]]


def test_a_template_of_a_tokenizer(text_encoder: TextEncoder, tmp_path: Path) -> None:
    """Answers are learned, with what the template adds to them; a prompt has the tokens that it has in training."""
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "eos_token": "<end>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat = chat_of("", tmp_path)
    texts = [(segment.text, segment.is_answer) for segment in chat.segments(TWO_TURNS)]
    assert texts == [
        ("[system] bar<end>\n[user] dar fat<end>\n[assistant] ", False),
        ("gas<end>\n", True),
        ("[user] kir<end>\n[assistant] ", False),
        ("lot mus<end>\n", True),
    ]
    encode = ConversationEncoder(text_encoder, chat, EOS)
    example, prompt = encode(chat.segments(TWO_TURNS)), encode(chat.prompt(TWO_TURNS[:4]))
    assert prompt.tokens.tolist() == example.tokens[: len(prompt.tokens)].tolist()
    assert example.tokens[len(prompt.tokens) :][example.learned[len(prompt.tokens) :]].tolist().count(EOS) == 1


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no chat template"):
        TemplateChat("{% for", SPECIAL, tmp_path)
    with pytest.raises(DataError, match="cannot write a conversation: no system here"):
        TemplateChat("{{ raise_exception('no system here') }}", SPECIAL, tmp_path).segments(TWO_TURNS)
    counts = TemplateChat("{{ messages|length }} of them", SPECIAL, tmp_path)
    with pytest.raises(DataError, match="in another way when more messages follow"):
        counts.segments(TWO_TURNS)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert isinstance(chat_of("", tmp_path), PlainChat) and isinstance(chat_of("plain", tmp_path), PlainChat)
    with pytest.raises(DataError, match="has no entry chat_template"):
        chat_of(str(tmp_path / "tokenizer_config.json"), tmp_path)


def test_the_loss_is_on_answers_alone(corpus_folder: Path) -> None:
    dictionary = load_dictionary(corpus_folder / "dict.txt", with_mask=False)
    tokens, learned = torch.tensor([7, 8, 2, 9, 2]), torch.tensor([False, False, False, True, True])
    examples = [Example(tokens.numpy(), learned.numpy()), Example(tokens[2:].numpy(), learned[2:].numpy())]
    dataset = InstructionDataset(examples, dictionary, shuffle=True)
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["net_input"]["src_tokens"].tolist() == [[EOS, 7, 8, 2, 9], [EOS, 2, 9, PAD, PAD]]
    assert batch["target"].tolist() == [[PAD, PAD, PAD, 9, 2], [PAD, 9, 2, PAD, PAD]]
    assert batch["ntokens"] == 4 and dataset.ordered_indices().tolist() == [1, 0]
