"""The index of shards, and what is wrong with data on disk."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.corpora import made_corpus, opened, write_dictionary, write_json
from tests.small_disk import fill, small_disk
from torchscale_fairseq.core.files import WriteError
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text import index as index_module
from torchscale_fairseq.data.text.index import LONGEST_UNIT, IndexPath, split_line, unit_text
from torchscale_fairseq.data.text.pieces import load_dictionary


@pytest.fixture
def data(corpus_folder: Path, tmp_path: Path) -> Path:
    """A corpus of one's own."""
    opened(corpus_folder)
    return Path(shutil.copytree(corpus_folder, tmp_path / "data"))


def indexed(path: Path, text: bytes) -> index_module.ShardIndex:
    """The index of a text whose tokens are its bytes."""
    path.write_bytes(text)
    place = IndexPath(path.parent / "index", path)
    place.build(lambda texts: [list(text.strip()) for text in texts])
    assert place.is_current()
    return place.load()


def test_units_of_lines(tmp_path: Path) -> None:
    index = indexed(tmp_path / "a.txt", b"ab\n\nabc\r\n \nend")
    assert index.units().tolist() == [(3, 3, True), (1, 0, True), (5, 4, True), (2, 0, True), (3, 4, True)]
    assert [tuple(vars(part).values()) for part in index.parts] == [(0, 5, 0, 14, 11)]


def test_long_lines_are_cut_at_spaces(tmp_path: Path) -> None:
    words = [b"w" * (n % 9 + 1) for n in range(2000)]
    line = b" ".join(words) + b"\n"
    units = split_line(line)
    assert b"".join(units) == line and max(map(len, units)) <= LONGEST_UNIT and len(units) == 6
    assert b" ".join(unit_text(unit) for unit in units) == line[:-1]
    index = indexed(tmp_path / "a.txt", line)
    assert index.units()["ends"].tolist() == [False] * 5 + [True]
    assert index.units()["tokens"].sum() == len(line) - 5  # the spaces at the cuts, and </s> for the line end


def test_lines_without_spaces_are_cut_between_characters() -> None:
    line = "日本語".encode() * 2000
    units = split_line(line)
    assert b"".join(units) == line and "".join(unit.decode() for unit in units) == line.decode()


def test_parts_end_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "PART_BYTES", 100)
    text = b"".join(b"%030d\n" % number + b"\n" * (number % 5 == 4) for number in range(40))
    index = indexed(tmp_path / "a.txt", text)
    assert len(index.parts) > 5
    assert sum(part.bytes for part in index.parts) == len(text)
    for part in index.parts:
        units = index.units(part.first_unit, part.units)
        assert units["ends"][-1] and units["bytes"].sum() == part.bytes <= 231
        assert text[part.first_byte - 1 : part.first_byte] in (b"\n", b"")


def test_an_index_is_made_once_and_again_after_a_change(data: Path) -> None:
    (header,) = data.glob("index/*/shard/train/a.txt.json")
    before = header.stat().st_mtime_ns
    opened(data)
    assert header.stat().st_mtime_ns == before
    with (data / "shard/train/a.txt").open("a") as file:
        file.write("bar dis\n")
    samples = len(opened(data, break_mode="eos").corpus)
    assert header.stat().st_mtime_ns > before and samples == len(opened(data, break_mode="eos").corpus)


def test_a_read_only_directory_needs_an_index_dir(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "index")
    (data / "index").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot be made: .*; name another\. --index-dir names another place for the"):
        opened(data)
    dataset = opened(data, index_dir=tmp_path / "elsewhere")
    assert len(dataset) and list((tmp_path / "elsewhere").rglob("a.txt.units"))


def test_a_full_disk_leaves_no_half_index(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as disk:
        filler = fill(disk, 1 << 16)
        shard = tmp_path / "a.txt"
        shard.write_bytes(b"ab\n" * (1 << 14))
        place = IndexPath(disk, shard)
        with pytest.raises(WriteError, match=r"a\.txt\.units cannot be written: No space left on device .*; make room"):
            place.build(lambda texts: [list(text) for text in texts])
        assert list(disk.iterdir()) == [filler] and not place.is_current()
        filler.unlink()
        place.build(lambda texts: [list(text) for text in texts])
        assert place.is_current()


def broken_line(data: Path, line: bytes) -> None:
    path = data / "shard/train/b.txt"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:10], line, *lines[10:]]))


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "not UTF-8": (
        lambda data: broken_line(data, b"bar \xff dis"),
        r"shard/train/b.txt, line 11: byte 5 \(0xff\) is not UTF-8; mend it, or .* --skip-invalid",
        "skipped 1 invalid lines, the first: .*b.txt, line 11: byte 5",
    ),
    "null byte": (
        lambda data: broken_line(data, b"bar \0 dis"),
        r"shard/train/b.txt, line 11: has a null byte inside",
        "skipped 1 invalid lines",
    ),
    "carriage return": (
        lambda data: broken_line(data, b"bar \r dis"),
        r"shard/train/b.txt, line 11: has a carriage return inside",
        "skipped 1 invalid lines",
    ),
    "missing shard": (
        lambda data: (data / "shard/train/b.txt").unlink(),
        r"json/train.json: source 'en' lists .*shard/train/b.txt, which does not exist",
        "skipped 1 missing shards",
    ),
    "empty source": (
        lambda data: write_json(
            data,
            "train",
            [{"source": ["shard/train/a.txt"], "weight": 1}, {"source": [], "weight": 2, "name": "nothing"}],
        ),
        r"json/train.json: source 'nothing' lists no shards",
        "skipped 1 empty sources",
    ),
    "source without text": (
        lambda data: [(data / f"shard/train/{name}.txt").write_text("\n \n") for name in "abc"],
        r"train: source 'en' has no text",
        "",
    ),
    "another dictionary": (
        lambda data: write_dictionary(data, leave_out=5),
        r"dict.txt does not fit .*sentencepiece.bpe.model: it lacks 5 of the tokenizer's 380 pieces, such as '<mask>', "
        r"piece 3",
        "",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_an_error_or_skipped_and_reported(
    case: str, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = len(opened(data, break_mode="eos"))
    spoil, message, report = BROKEN[case]
    spoil(data)
    with pytest.raises(DataError, match=message):
        opened(data)
    if case == "source without text":
        with pytest.raises(DataError, match="no text is left"):
            opened(data, skip=True)
        return
    dataset = opened(data, skip=True, break_mode="eos")
    assert report in caplog.text or __import__("re").search(report, caplog.text)
    ids = [number for place in range(0, len(dataset), 8) for number in read_ids(dataset, place, 8)]
    assert len(ids) == len(dataset) and (len(ids) == whole or case in ("missing shard", "empty source"))


def read_ids(dataset, start: int, size: int) -> list[int]:
    return dataset.batch(0, start, min(start + size, len(dataset)))["id"].tolist()


def test_a_shard_that_changes_while_it_is_read(data: Path) -> None:
    dataset = opened(data)
    path = data / "shard/train/a.txt"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"a", b" "))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"a.txt, after byte \d+: the text has changed since it was indexed"):
        dataset.batch(0, 0, len(dataset))
    path.unlink()
    with pytest.raises(DataError, match=r"a.txt cannot be read: No such file"):
        dataset.batch(0, 0, len(dataset))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"json/train.json, line 1: not JSON"),
        ("{}", r"json/train.json must hold a list of sources"),
        ('[{"source": "a"}]', r"json/train.json, source 1: needs 'source', a list of paths"),
        ('[{"source": ["a"], "weight": "x"}]', r"source 1: weight 'x' is not a number"),
        ('[{"source": ["a"], "weight": 0}]', r"source 1: weight \(0.0\) must be above 0"),
        ('[{"source": ["a"], "weight": 1}, {"source": ["b"], "name": "n"}]', r"source 'n' has no weight, but others"),
    ],
)
def test_what_the_list_of_sources_must_be(content: str, message: str, data: Path) -> None:
    (data / "json/train.json").write_text(content)
    with pytest.raises(DataError, match=message):
        opened(data)


def test_a_split_that_is_not_there(data: Path) -> None:
    with pytest.raises(DataError, match=r"json/test.json does not exist; .* \(there: train, valid\)"):
        opened(data, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\nb\n", r"dict.txt, line 2: 'b' is not a symbol, a space and a count"),
        (b"a 1\n\xffb 1\n", r"dict.txt, line 2: byte 0xff is not UTF-8"),
        (b"a 1\nb 1\na 2\n", r"dict.txt, line 3: 'a' stands in line 1 already"),
    ],
)
def test_broken_dictionaries(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dictionary(tmp_path / "dict.txt", with_mask=True)


def test_missing_or_broken_tokenizer(data: Path) -> None:
    (data / "sentencepiece.bpe.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"--spm-model: .* is not a SentencePiece model"):
        opened(data)
    (data / "sentencepiece.bpe.model").unlink()
    with pytest.raises(DataError, match=r"data has no tokenizer \(sentencepiece.bpe.model, .* data train-tokenizer"):
        opened(data)


def test_counts_of_samples_are_remembered(tmp_path: Path) -> None:
    data = made_corpus(tmp_path / "data")
    first = opened(data, capacity=20).corpus.samples[0].tolist()
    (kept,) = data.glob("index/*/shard/train/a.txt.complete-20")
    assert json.loads(kept.read_text()) == first[:1]
    assert opened(data, capacity=20).corpus.samples[0].tolist() == first
