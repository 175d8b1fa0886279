"""torchscale-fairseq data train-tokenizer, data shard-corpus and unigram-perplexity: from raw text to the data
directory of --task pretraining."""

import json
import math
import random
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

import sentencepiece

from tests.data.corpora import made_line
from tests.data.formats import FORMATS, WRITERS
from tests.data.tokenizer_files import byte_level
from tests.fairseq_cli import TOOL, Finished, run_program
from tests.tools.in_process import run_tool
from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.tools.data import shards

TOKENIZER, SHARDS = ("data", "train-tokenizer"), ("data", "shard-corpus")
STRANGE = ["Œuvre ½ … ﬁn", "日本語", "a\u00a0 b\t c", "x" * 3000 + " end"]
SMALL_SHARDS = 5_000


def write_text(path: Path, documents: int, seed: int) -> Path:
    """Documents of a few lines, apart by one empty line or more."""
    generator = random.Random(seed)
    lines = []
    for _ in range(documents):
        lines += [made_line(generator) for _ in range(generator.randint(1, 5))] + [""] * generator.randint(1, 3)
    path.write_text("\n".join(lines) + "\n")
    return path


def documents_of(*paths: Path) -> list[str]:
    """Documents in order, white space as the shards have it."""
    found = []
    for path in paths:
        for document in re.split(r"\n(?:[^\S\n]*\n)+", path.read_text("utf-8").strip("\n")):
            lines = [" ".join(line.split()) for line in document.split("\n")]
            found += ["\n".join(lines)] if any(lines) else []
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, and a data directory with a tokenizer."""
    folder = tmp_path_factory.mktemp("raw")
    for name, documents in (("one", 150), ("two", 60), ("valid", 10), ("test", 10)):
        write_text(folder / f"{name}.txt", documents, seed=documents)
    with (folder / "two.txt").open("a", encoding="utf-8") as file:
        file.write("\n".join(STRANGE) + "\n")
    words = [*TOKENIZER, folder / "one.txt", folder / "two.txt", "--output", folder / "data"]
    done = run_tool(*words, "--vocab-size", 390, "--workers", 2).check()
    assert done.stdout.splitlines()[-1].endswith("dict.txt: 390 pieces")
    again = run_tool(*words, "--vocab-size", 300).check()
    assert "are there already" in again.stdout
    return folder


def shard(folder: Path, data: Path, *options: object) -> Finished:
    if not data.exists():
        data.mkdir()
        for name in ("sentencepiece.bpe.model", "dict.txt"):
            (data / name).write_bytes((folder / "data" / name).read_bytes())
    return run_program([*TOOL, *SHARDS, data, "--workers", 2, *options])


def test_shards_hold_the_documents(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    splits = ["--train", made / "one.txt", made / "two.txt", "--valid", made / "valid.txt", "--test", made / "test.txt"]
    printed = shard(made, data, *splits).check().stdout.splitlines()
    expected = documents_of(made / "one.txt", made / "two.txt")
    (source,) = json.loads((data / "json/train.json").read_text())
    assert source["name"] == source["source_lang"] == "en" and "weight" not in source
    assert documents_of(*(data / path for path in source["source"])) == expected
    assert re.match(
        rf"train: wrote 1 shards to .*: {len(expected):,} documents, [\d,]+ lines, [\d,]+ tokens", printed[0]
    )
    assert {path.stem for path in (data / "json").iterdir()} == {"train", "valid", "test"}
    assert len(list((data / "index").rglob("*.units"))) == 3


def test_goes_on_where_it_was(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shard(made, data, "--train", made / "one.txt").check()
    (path,) = data.glob("shard/train/en/*.txt")
    before = path.stat().st_mtime_ns
    assert "wrote 0 shards" in shard(made, data, "--train", made / "one.txt").check().stdout
    assert path.stat().st_mtime_ns == before
    (index,) = data.rglob("*.units")
    index.with_name("00000.txt.json").unlink()
    assert "wrote 1 shards" in shard(made, data, "--train", made / "one.txt").check().stdout
    refused = shard(made, data, "--train", made / "two.txt")
    assert refused.returncode == 1 and "was begun from other files, or with another --shard-size" in refused.stderr


def test_another_source_is_added_or_replaced(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shard(made, data, "--train", made / "one.txt", "--name", "first", "--weight", 1).check()
    for weight in (2, 3):
        words = ["--train", made / "two.txt", "--name", "second", "--source-lang", "de", "--weight", weight]
        shard(made, data, *words).check()
    sources = json.loads((data / "json/train.json").read_text())
    assert [(source["name"], source["source_lang"], source["weight"]) for source in sources] == [
        ("first", "en", 1.0),
        ("second", "de", 3.0),
    ]


def test_many_shards_cut_between_documents(made: Path, tmp_path: Path) -> None:
    """Planned from the sizes alone; every document is in one shard, whole."""
    code = f"""
    import runpy, sys
    from pathlib import Path
    from torchscale_fairseq.data.problems import Problems
    from torchscale_fairseq.tools.data import shards
    texts = [{str(made / "one.txt")!r}, {str(made / "two.txt")!r}]
    for job in shards.plan(texts, Path({str(tmp_path)!r}), {SMALL_SHARDS}):
        job.shard.write_bytes(b"\\n".join(shards.document_lines(job, Problems(skip=False))) + b"\\n")
    """
    run_program([sys.executable, "-c", re.sub(r"^    ", "", code, flags=re.MULTILINE)]).check()
    shards = sorted(tmp_path.glob("*.txt"))
    assert len(shards) >= 5
    assert documents_of(*shards) == documents_of(made / "one.txt", made / "two.txt")


def test_broken_lines(made: Path, tmp_path: Path) -> None:
    text = tmp_path / "broken.txt"
    text.write_bytes(b"bar dis\n\ncaf\xe9\nbar\n")
    refused = shard(made, tmp_path / "data", "--train", text)
    assert refused.returncode == 1
    assert re.search(r"broken.txt, line 3: byte 0xe9 is not UTF-8; mend it, or .* --skip-invalid", refused.stderr)
    skipped = shard(made, tmp_path / "data", "--train", text, "--skip-invalid").check().stdout
    assert "left out 1 invalid lines, the first: " in skipped and "line 3" in skipped
    assert (tmp_path / "data/shard/train/en/00000.txt").read_text() == "bar dis\n\nbar\n"


def test_text_of_blank_lines_is_refused(made: Path, tmp_path: Path) -> None:
    """And does not stand in the way of other text."""
    data, text = shutil.copytree(made / "data", tmp_path / "data"), tmp_path / "blank.txt"
    text.write_text("\n \n\t\n")
    refused = run_tool(*SHARDS, data, "--workers", 1, "--train", text)
    assert refused.returncode == 1 and refused.last_line.endswith(f"shard-corpus: --train {text}: no line has text")
    text.write_text("")
    refused = run_tool(*SHARDS, data, "--workers", 1, "--train", text)
    assert refused.returncode == 1 and refused.last_line == f"torchscale-fairseq data shard-corpus: {text}: no text"
    assert not list(data.glob("json/*"))
    run_tool(*SHARDS, data, "--workers", 1, "--train", made / "valid.txt").check()


@pytest.fixture(scope="module")
def formats(made: Path) -> tuple[list[Path], list[str]]:
    """The documents of a text in files of every format, and the documents as shards have them."""
    documents = documents_of(made / "two.txt")
    files = []
    for place, name in enumerate(FORMATS):
        suffix, _, write = WRITERS[name]
        files.append(made / f"{place}{suffix}")
        chosen = documents[place :: len(FORMATS)]
        lines = [line for document in chosen for line in (*document.split("\n"), "")]
        write(lines if suffix.startswith(".txt") else [f" {document}\n\n" for document in chosen], files[-1])
    return files, [document for place in range(len(FORMATS)) for document in documents[place :: len(FORMATS)]]


def test_every_format_is_sharded(made: Path, formats: tuple[list[Path], list[str]], tmp_path: Path) -> None:
    files, documents = formats
    data = shutil.copytree(made / "data", tmp_path / "data")
    for _ in range(2):  # the second time nothing is left to do
        run_tool(*SHARDS, data, "--workers", 1, "--train", *files).check()
    (source,) = json.loads((data / "json/train.json").read_text())
    assert documents_of(*(data / path for path in source["source"])) == documents


def test_a_large_file_fills_several_shards(formats: tuple[list[Path], list[str]], tmp_path: Path) -> None:
    files, documents = formats
    ((job,),) = [shards.plan([str(file)], tmp_path, 1) for file in files if file.suffix == ".jsonl"]
    parts = list(shards.parts_of(job, Problems(skip=False), 200))
    assert len(parts) > 2 and all(part and part[-1] for part in parts)
    found = [document for part in parts for document in b"\n".join(part).decode().split("\n\n")]
    assert found == [document for document in documents if document in set(found)]


def test_a_tokenizer_of_every_format(made: Path, formats: tuple[list[Path], list[str]], tmp_path: Path) -> None:
    """Learns from the lines that a file of text has."""
    files, documents = formats
    (tmp_path / "text.txt").write_text("\n\n".join(documents) + "\n")
    for name, texts in (("one", files), ("two", [tmp_path / "text.txt"])):
        run_tool(*TOKENIZER, *texts, "--output", tmp_path / name, "--vocab-size", 340, "--workers", 1).check()
    one, two = ((tmp_path / name / "dict.txt").read_text() for name in ("one", "two"))
    assert one == two


def test_captions_are_text(tmp_path: Path) -> None:
    """Without --text-field; another field is named."""
    lines = [{"image": "1.png", "caption": "bar dis " * 9, "title": "gas kir lot " * 9}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for field, word in (([], "bar"), (["--text-field", "title"], "gas")):
        data = tmp_path / word
        words = [tmp_path / "train.jsonl", *field, "--output", data, "--vocab-size", 275, "--workers", 1]
        run_tool(*TOKENIZER, *words, "--model-type", "bpe").check()
        assert f"\u2581{word[0]}" in (data / "dict.txt").read_text()
    refused = run_tool(*TOKENIZER, *words[:1], "--text-field", "body", "--output", tmp_path / "none")
    assert "train.jsonl, line 1: has no field 'body' (there: image, caption, title)" in refused.last_line


def test_a_fast_tokenizer_shards(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    byte_level(tmp_path / "tokenizer.json")
    run_tool(*SHARDS, tmp_path, "--workers", 1, "--train", made / "valid.txt").check()
    (source,) = json.loads((tmp_path / "json/train.json").read_text())
    assert documents_of(*(tmp_path / path for path in source["source"])) == documents_of(made / "valid.txt")


def test_a_tokenizer_is_not_trained_on_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n \n")
    refused = run_tool(*TOKENIZER, text, "--output", tmp_path / "data", "--vocab-size", 300, "--workers", 1)
    assert refused.returncode == 1 and refused.last_line.endswith("train-tokenizer: the text to learn from is empty")
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_that_loses_text_is_refused(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(made / "one.txt"), model_prefix=str(data / "sentencepiece.bpe"), vocab_size=60, minloglevel=2
    )
    text = tmp_path / "text.txt"
    text.write_text("bar dis\nbar ﬁn 日\n")
    refused = shard(made, data, "--train", text)
    assert refused.returncode == 1 and re.search(r"00000.txt, line 2: the tokenizer makes", refused.stderr)
    assert "--lossy" in refused.stderr and not list(data.glob("shard/train/en/0*"))
    shard(made, data, "--train", text, "--lossy").check()


def test_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\n")
    refused = run_tool(*SHARDS, tmp_path / "data", "--train", tmp_path / "text.txt")
    assert refused.returncode == 1 and "make one with torchscale-fairseq data train-tokenizer" in refused.stderr


def test_perplexity_of_guessing_by_frequency(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shard(made, data, "--train", made / "one.txt", "--test", made / "test.txt").check()
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model"))
    counts = []
    for name in ("one", "test"):
        lines = [line for line in (made / f"{name}.txt").read_text().splitlines() if line.strip()]
        counts.append(Counter(piece for line in lines for piece in [*tokenizer.encode(line), -1]))
    train, test = counts
    total = sum(train.values()) + tokenizer.get_piece_size() + 1
    bits = sum(count * math.log((train[piece] + 1) / total) for piece, count in test.items())
    expected = math.exp(-bits / sum(test.values()))
    printed = run_tool("unigram-perplexity", data).check().stdout
    assert printed.endswith(f" for {sum(test.values()):,} tokens\n")
    assert float(re.search(r"guessing by frequency: perplexity ([\d.]+)", printed)[1]) == pytest.approx(
        expected, abs=0.051
    )
