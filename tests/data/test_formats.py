"""Documents in files of other formats than shards of text: the same samples, exact resumption, and what is wrong."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.data.corpora import opened, write_json
from tests.data.formats import FORMATS, WRITERS, made_format
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text import tokenized
from torchscale_fairseq.data.text.batch_iterator import PretrainingIterator
from torchscale_fairseq.data.text.masking import Masking
from torchscale_fairseq.data.text.pretraining_dataset import PretrainingDataset

MASKING = Masking(0.3, 1.0, 0.1, 0.1, mask=4, replacements=(4, 381))


@pytest.fixture(scope="module", params=FORMATS)
def data(request: pytest.FixtureRequest, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in each format."""
    return made_format(corpus_folder, tmp_path_factory.mktemp("formats") / "data", request.param)


@pytest.fixture
def documents(corpus_folder: Path, tmp_path: Path) -> Path:
    """JSON lines of one's own."""
    return made_format(corpus_folder, tmp_path / "data", "json")


def assert_same_batch(ours: PretrainingDataset, theirs: PretrainingDataset, epoch: int) -> None:
    assert len(ours) == len(theirs)
    found, expected = (dataset.batch(epoch, 0, len(dataset)) for dataset in (ours, theirs))
    for name in ("id", "target"):
        assert torch.equal(found[name], expected[name])
    assert torch.equal(found["net_input"]["src_tokens"], expected["net_input"]["src_tokens"])


@pytest.mark.parametrize("break_mode", ["none", "complete"])
def test_samples_are_those_of_text(break_mode: str, data: Path, corpus_folder: Path) -> None:
    """In the same order, with the same masks, in two epochs."""
    ours, theirs = (opened(folder, break_mode=break_mode, masking=MASKING) for folder in (data, corpus_folder))
    for epoch in (0, 1):
        assert_same_batch(ours, theirs, epoch)


@pytest.mark.parametrize("weights", [(1, 3), (3, 1)])
def test_weights_of_sources_are_those_of_text(
    weights: tuple[int, int], data: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    split = f"weights{weights[0]}"
    text = Path(shutil.copytree(corpus_folder, tmp_path / "text"))
    for folder in (data, text):
        (listed,) = json.loads((folder / "json/train.json").read_text())
        names = (listed["source"][:1], listed["source"][1:])
        write_json(folder, split, [{"source": part, "weight": w} for part, w in zip(names, weights, strict=True)])
    assert_same_batch(opened(data, split), opened(text, split), 2)


def test_resuming_with_other_processes_and_workers(data: Path) -> None:
    """Two processes with batches of 3 stop after 5 steps; three go on with batches of 2, one of them in a worker."""
    dataset = opened(data, masking=MASKING)
    first = PretrainingIterator(dataset, batch_size=3, num_shards=2)
    stream = first.next_epoch_itr()
    for _ in range(5):
        next(stream)
    resumed = [
        PretrainingIterator(
            opened(data, masking=MASKING), batch_size=2, num_shards=3, shard_id=rank, num_workers=workers
        )
        for rank, workers in enumerate((0, 0, 1))
    ]
    for iterator in resumed:
        iterator.load_state_dict(first.state_dict())
    read = [next(iterator.next_epoch_itr()) for iterator in resumed]
    expected = dataset.batch(0, 30, 36)
    assert torch.equal(torch.cat([batch["id"] for batch in read]), expected["id"])
    rows = [row[row != 1].tolist() for batch in read for row in batch["target"]]
    assert rows == [row[row != 1].tolist() for row in expected["target"]]


def test_a_file_is_tokenized_once_and_again_after_a_change(documents: Path) -> None:
    opened(documents)
    (tokens,) = documents.glob("index/*/shard/a.jsonl.text.tokens")
    before = tokens.stat().st_mtime_ns
    opened(documents)
    assert tokens.stat().st_mtime_ns == before
    with (documents / "shard/a.jsonl").open("a") as file:
        file.write('{"text": "bar dis"}\n')
    opened(documents)
    assert tokens.stat().st_mtime_ns > before


def test_documents_of_several_lines(documents: Path) -> None:
    """A document is one text, with the line ends inside and one </s>."""
    (documents / "shard/a.jsonl").write_text(json.dumps({"text": "bar dis\n\nfis"}) + "\n")
    write_json(documents, "train", [{"source": ["shard/a.jsonl"], "source_lang": "en"}])
    batch = opened(documents, break_mode="eos").batch(0, 0, 1)
    target = batch["target"][0].tolist()
    assert target.count(2) == 1 and target[-1] == 2 and target.count(0x0A + 5) == 2  # bytes follow <unk> and <mask>


def test_samples_of_a_long_document_are_read_without_the_rest(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(json.loads(line)["text"] for line in (documents / "shard/a.jsonl").read_text().splitlines())
    (documents / "shard/a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    write_json(documents, "train", [{"source": ["shard/a.jsonl"], "source_lang": "en"}])
    whole = opened(documents, seed=None)
    expected = whole.batch(0, 0, len(whole))["target"]
    shutil.rmtree(documents / "index")
    monkeypatch.setattr(tokenized, "LONGEST_UNIT", 7)
    cut = opened(documents, seed=None)
    assert torch.equal(cut.batch(0, 0, len(cut))["target"], expected)
    assert max(cut.corpus.rows(*cut.order.window(0, 0)[:2])["bytes"]) <= 2 * (31 + 2 * 7)


def test_files_named_after_the_split(documents: Path) -> None:
    """Without json/train.json."""
    samples = len(opened(documents).corpus)
    (documents / "json/train.json").unlink()
    (documents / "shard").rename(documents / "train")
    assert len(opened(documents).corpus) == samples
    for number, path in enumerate(sorted((documents / "train").iterdir())):
        path.rename(documents / f"train-0000{number}.jsonl")
    (documents / "train").rmdir()
    assert len(opened(documents).corpus) == samples
    with pytest.raises(DataError, match=r"json/valid.json does not exist; .* no file like valid.jsonl or valid/"):
        opened(documents, "valid")


def test_urls_and_patterns(documents: Path) -> None:
    import fsspec

    samples = len(opened(documents).corpus)
    memory = fsspec.filesystem("memory")
    for path in (documents / "shard").iterdir():
        memory.pipe(f"/corpus/{path.name}", path.read_bytes())
    write_json(documents, "train", [{"source": ["memory://corpus/*.jsonl"], "source_lang": "en"}])
    assert len(opened(documents).corpus) == samples
    write_json(documents, "train", [{"source": ["shard/*.jsonl"], "source_lang": "en"}])
    assert len(opened(documents).corpus) == samples
    for source, message in (
        ("memory://corpus/none.jsonl", "lists memory://corpus/none.jsonl, which does not exist"),
        ("unheard://corpus/a.jsonl", "unheard://corpus/a.jsonl cannot be opened: Protocol not known: unheard"),
    ):
        write_json(documents, "train", [{"source": [source], "source_lang": "en"}])
        with pytest.raises(DataError, match=message):
            opened(documents)
    with pytest.raises(DataError, match=r"memory://corpus is a URL, .* name a local folder for it with --index-dir"):
        tokenized_path("memory://corpus", documents)


def tokenized_path(data: str, tokenizer: Path) -> object:
    from torchscale_fairseq.data.text.corpus import index_path
    from torchscale_fairseq.data.text.tokenizers import tokenizer_of

    return index_path(data, f"{data}/a.jsonl", tokenizer_of(str(tokenizer), None), None)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def line_11(content: bytes) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join([*lines[:10], content, *lines[10:]]))

    return spoil


def null_in_row_11(path: Path) -> None:
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(path)["text"].to_pylist()
    pyarrow.parquet.write_table(pyarrow.table({"text": [*texts[:10], None, *texts[10:]]}), path)


def other_column(path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).rename_columns(["id", "body"]), path)


SKIPPABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("json", line_11(b'{"text": '), "line 11: is not JSON: Expecting value at column 10"),
    ("json", line_11(b'{"id": 1, "body": "a"}'), r"line 11: has no field 'text' \(there: id, body\); --text-field"),
    ("json", line_11(b'{"text": 3}'), "line 11: field 'text' is number, not a text"),
    ("json", line_11(b'{"text": "\\ud800"}'), "line 11: field 'text' has half of a surrogate pair"),
    ("json", line_11(b"[1]"), "line 11: is a JSON array instead of an object"),
    ("json", line_11(b'{"text": "\xff"}'), r"line 11: byte 11 \(0xff\) is not UTF-8"),
    ("json.gz", cut_short, r"line \d+: the compressed file ends too early; it is truncated"),
    ("json.zst", cut_short, r"line \d+: the compressed file ends too early; it is truncated"),
    ("json.gz", lambda path: path.write_bytes(b"{}"), "line 1: the compressed file is damaged"),
    ("text.gz", lambda path: path.write_bytes(gzip.compress(b"a\nb\xff\n")), "line 2: byte 2 .* is not UTF-8"),
    ("parquet", null_in_row_11, "row 11: column 'text' is null, not a text"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), SKIPPABLE)
def test_invalid_documents_are_named_or_skipped(
    name: str,
    spoil: Callable[[Path], object],
    message: str,
    corpus_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if name not in FORMATS:
        pytest.skip(f"needs {WRITERS[name][1]}")
    data = made_format(corpus_folder, tmp_path / "data", name)
    spoil(data / f"shard/b{WRITERS[name][0]}")
    with pytest.raises(DataError, match=rf"shard/b.*, {message}.*; mend it, or .* --skip-invalid"):
        opened(data)
    assert len(opened(data, skip=True))
    assert "skipped 1 invalid" in caplog.text


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("parquet", cut_short, r"b.parquet: cannot be read as Parquet: .*; write the file again"),
    (
        "parquet",
        other_column,
        r"b.parquet has no column 'text' \(there: id, body\); name the one of the text with --te",
    ),
    ("saved", lambda path: cut_short(path / "data.arrow"), r"data.arrow(, row \d+)?: cannot be read as Arrow: "),
    ("saved", lambda path: (path / "state.json").write_text("{}"), r"state.json does not list the files of a saved"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BROKEN)
def test_broken_files_are_named(
    name: str, spoil: Callable[[Path], object], message: str, corpus_folder: Path, tmp_path: Path
) -> None:
    if name not in FORMATS:
        pytest.skip(f"needs {WRITERS[name][1]}")
    data = made_format(corpus_folder, tmp_path / "data", name)
    spoil(data / f"shard/b{WRITERS[name][0]}")
    with pytest.raises(DataError, match=message):
        opened(data)


def test_missing_packages_are_named(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (documents / "shard/a.jsonl").rename(documents / "shard/a.jsonl.zst")
    write_json(documents, "train", [{"source": ["shard/a.jsonl.zst"], "source_lang": "en"}])
    with pytest.raises(
        ModuleNotFoundError, match=r"zstandard; install it with pip install torchscale-fairseq\[formats\]"
    ):
        opened(documents)
