"""Images in tar and Parquet shards: the pixels and classes of a folder of files, in any order and process."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pyvips")
pytest.importorskip("fairseq")

from PIL import Image

from tests.plugin.drawings import make_folders
from torchscale_fairseq.data.images.shards import find_shards, read_shards
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.tasks._images import ImageConfig
from torchscale_fairseq.tasks.image_classification import ImageClassificationTask


def task(data: Path, **options: Any) -> ImageClassificationTask:
    cfg = ImageConfig(data=str(data), img_size=32, patch_size=8, seed=3, train_subset="train", **options)
    return ImageClassificationTask.setup_task(cfg)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("folders"), train=2, valid=1)


def examples(folders: Path, split: str) -> list[tuple[bytes, str]]:
    files = sorted((folders / split).glob("*/*.png"))
    return [(file.read_bytes(), file.parent.name) for file in files]


def in_tars(folders: Path, data: Path) -> Path:
    for split in ("train", "valid"):
        for number, (content, label) in enumerate(examples(folders, split)):
            name = f"part/{number}"
            labels = {".cls": label.encode()} if number % 2 else {".json": json.dumps({"label": label}).encode()}
            members = {f"{name}{end}": value for end, value in labels.items()}
            members = {**members, f"{name}.png": content, f"{name}.txt": b"a caption"}
            write_tar(data / split / f"{number:03d}.tar", members)
    return data


def in_parquet(folders: Path, data: Path) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split in ("train", "valid"):
        (data / split).mkdir()
        rows = [
            {"image": {"bytes": content, "path": None}, "label": label} for content, label in examples(folders, split)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows), data / split / "0.parquet")
    return data


@pytest.mark.parametrize("written", [in_tars, in_parquet])
def test_shards_hold_what_folders_do(written: Any, folders: Path, tmp_path: Path) -> None:
    """Classes, pixels, targets and the order of an epoch."""
    ours, theirs = task(written(folders, tmp_path)), task(folders)
    assert ours.state.classes == theirs.state.classes
    for split in ("train", "valid"):
        for each in (ours, theirs):
            each.load_dataset(split)
        found, expected = ours.datasets[split], theirs.datasets[split]
        assert len(found) == len(expected)
        for index in reversed(range(len(found))):
            assert found[index]["id"] == expected[index]["id"]
            assert found[index]["target"] == expected[index]["target"]
            assert torch.equal(found[index]["patches"], expected[index]["patches"])


def test_a_copy_of_parquet_follows_the_file(folders: Path, tmp_path: Path) -> None:
    data = in_parquet(folders, tmp_path)
    shards, copies = find_shards(data / "train"), tmp_path / "copies"
    before = read_shards(shards, copies)
    (copy,) = copies.iterdir()
    time = copy.stat().st_mtime_ns
    assert read_shards(shards, copies) == before and copy.stat().st_mtime_ns == time
    os.utime(shards[0], ns=(time + 10**9, time + 10**9))
    assert read_shards(shards, copies) == before and copy.stat().st_mtime_ns > time


def test_numbers_are_classes_up_to_the_largest_and_pillow_reads_from_a_shard(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(picture, "bmp")
    members = {"a.bmp": picture.getvalue(), "a.cls": b"3\n", "b.bmp": picture.getvalue(), "b.json": b'{"label": 0}'}
    write_tar(tmp_path / "train" / "0.tar", members)
    built = task(tmp_path)
    assert built.state.classes == ["0", "1", "2", "3"]
    built.load_dataset("train")
    assert sorted(int(example["target"]) for example in built.datasets["train"]) == [0, 3]
    assert built.datasets["train"][0]["patches"][0, :, 0, 0].tolist() == [10, 20, 30]


BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "no label": ({"a.png": b""}, r"has 1 image\(s\) and no label for the sample a; it needs .* a.cls or a.json"),
    "two images": ({"a.png": b"", "a.jpg": b"", "a.cls": b"1"}, r"has 2 image\(s\) and a label for the sample a"),
    "empty label": ({"a.png": b"", "a.cls": b" "}, r"a.cls has no label; it should be such as"),
    "no field": ({"a.png": b"", "a.json": b'{"class": 1}'}, r"a.json has no label; it should be such as"),
    "one class": ({"a.png": b"", "a.cls": b"x"}, r"train has 1 label\(s\); it needs two or more"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_shard_is_named(case: str, tmp_path: Path) -> None:
    members, message = BROKEN[case]
    write_tar(tmp_path / "train" / "0.tar", members)
    with pytest.raises(DataError, match=message):
        task(tmp_path)


def test_what_cannot_be_read_is_named(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"0\.tar is not a tar file without compression that can be read"):
        task(tmp_path)
    (tmp_path / "train" / "blue").mkdir()
    with pytest.raises(DataError, match=r"train has shards, such as 0\.tar, and folders"):
        task(tmp_path)
    data = write_tar(tmp_path / "other" / "train" / "0.tar", {"a.png": b"no image", "a.cls": b"1"}).parent.parent
    built = task(data)
    with pytest.raises(DataError, match=r"0\.tar/a\.png is not an image that can be read"):
        built.load_dataset("train")
