"""Files and directories that take their name when they are complete."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.small_disk import fill, small_disk
from torchscale_fairseq.core.files import WriteError, make_directory_atomically, write_atomically

ROOM = 1 << 16
Write = Callable[[Path], object]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disk"), "2m") as mounted:
        yield mounted


@pytest.fixture
def filler(disk: Path) -> Iterator[Path]:
    path = fill(disk, ROOM)
    yield path
    path.unlink(missing_ok=True)


def by_python(path: Path) -> None:
    path.write_bytes(bytes(2 * ROOM))


def by_torch(path: Path) -> None:
    torch.save({"tensor": torch.zeros(2 * ROOM, dtype=torch.uint8)}, path)


def by_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"tensor": torch.zeros(2 * ROOM, dtype=torch.uint8)}, path)


@pytest.mark.parametrize("write", [by_python, by_torch, by_safetensors])
def test_full_disk_leaves_the_earlier_file_and_goes_on_after_room_is_made(
    disk: Path, filler: Path, write: Write
) -> None:
    path = disk / "file"
    path.write_text("earlier")
    with (
        pytest.raises(WriteError, match=r"file cannot be written: No space left on device \(after .* unchanged"),
        write_atomically(path) as scratch,
    ):
        write(scratch)
    assert path.read_text() == "earlier"
    assert sorted(p.name for p in disk.iterdir()) == [filler.name, "file"]
    filler.unlink()
    with write_atomically(path) as scratch:
        write(scratch)
    assert path.stat().st_size >= 2 * ROOM
    path.unlink()


def test_full_disk_leaves_no_half_directory(disk: Path, filler: Path) -> None:
    path = disk / "directory"

    def make() -> None:
        with make_directory_atomically(path) as scratch:
            (scratch / "first").write_text("small")
            by_torch(scratch / "second")

    with pytest.raises(WriteError, match=r"directory cannot be written: No space left on device"):
        make()
    assert [p.name for p in disk.iterdir()] == [filler.name]
    filler.unlink()
    make()
    assert sorted(p.name for p in path.iterdir()) == ["first", "second"]


def test_another_error_passes_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), write_atomically(tmp_path / "file") as scratch:
        scratch.write_text("half")
        raise KeyError
    with pytest.raises(KeyError), make_directory_atomically(tmp_path / "directory") as scratch:
        (scratch / "file").write_text("half")
        raise KeyError
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "file") as scratch:
        (tmp_path / "input").read_text()
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    message = "missing/file cannot be written: No such file"
    with pytest.raises(WriteError, match=message), write_atomically(tmp_path / "missing" / "file") as scratch:
        scratch.write_text("text")


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_text("left by an earlier run that was longer")
    with write_atomically(tmp_path / "file") as scratch:
        scratch.open("a").write("new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_several_writers_have_scratch_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with write_atomically(path, several_writers=True) as first, write_atomically(path, several_writers=True) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["first"]


def test_links_are_followed_and_devices_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with write_atomically(tmp_path / "link") as scratch:
        scratch.write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"
    with write_atomically("/dev/null") as scratch:
        assert scratch == Path("/dev/null")


def test_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="exists and is not an empty directory"), make_directory_atomically(tmp_path):
        pass
