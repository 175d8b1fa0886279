"""Images that cannot be read are found before training, and remembered."""

import os
from pathlib import Path

import pytest

from tests.data.image_files import KINDS
from tests.fairseq_cli import run_beside_fairseq
from torchscale_fairseq.data.images import check as image_check
from torchscale_fairseq.data.images.check import readable_images
from torchscale_fairseq.data.images.reading import load_image
from torchscale_fairseq.data.problems import DataError, Problems


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two good files, a truncated one and one that is no image."""
    folder = tmp_path / "train" / "class"
    folder.mkdir(parents=True)
    for name in ("rgb.png", "rgb.tif", "rgb.bmp"):
        KINDS[name](folder / name)
    whole = (folder / "rgb.tif").read_bytes()
    (folder / "rgb.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    return [folder / name for name in ("rgb.png", "rgb.tif", "rgb.bmp", "notes.txt")]


def check(images: list[Path], data: Path, *, skip: bool = True) -> list[int]:
    return readable_images(images, 32, data, "train", Problems(skip=skip))


def test_unreadable_images_are_left_out_and_named(
    images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problems = Problems(skip=True)
    assert readable_images([*images, images[0]], 32, tmp_path, "train", problems) == [0, 2, 4]
    problems.report("train")
    assert problems.counts == {"unreadable images": 2}
    for name in (r"rgb\.tif", r"notes\.txt"):
        assert any("left out" in line and name.replace("\\", "") in line for line in caplog.messages)
    assert "train: skipped 2 unreadable images, the first: " in caplog.messages[-1]


def test_the_first_unreadable_image_ends_what_does_not_skip(images: list[Path], tmp_path: Path) -> None:
    message = r"rgb\.tif is not an image .* \(2 unreadable images in all\); mend it, or leave .* with --skip-invalid\.$"
    with pytest.raises(DataError, match=message):
        check(images, tmp_path, skip=False)
    with pytest.raises(DataError, match=r"none of the 1 images of .*train can be read"):
        check(images[3:], tmp_path)


def test_results_are_remembered_until_a_file_changes(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    reasons = image_check._reasons

    def counted(files: list[Path], img_size: int) -> list[str]:
        decoded.extend(file.name for file in files)
        return reasons(files, img_size)

    monkeypatch.setattr(image_check, "_reasons", counted)
    assert check(images, tmp_path) == check(images, tmp_path) == [0, 2]
    assert len(decoded) == 4
    KINDS["rgb.tif"](images[1])
    os.utime(images[1], ns=(1, 1))
    images[2].unlink()
    assert check(images, tmp_path) == [0, 1]
    assert decoded[4:] == ["rgb.tif", "rgb.bmp"]


def test_a_process_that_has_read_images_checks_them_itself(images: list[Path], tmp_path: Path) -> None:
    """libvips would hang in processes forked from it."""
    load_image(images[0], 32)
    assert check(images, tmp_path) == [0, 2]


def test_processes_of_a_fresh_one_check_images(images: list[Path], tmp_path: Path) -> None:
    """And this one can still fork readers of images."""
    code = f"""
        import sys
        from concurrent.futures import ProcessPoolExecutor
        from pathlib import Path
        from torchscale_fairseq.data.images.check import readable_images
        from torchscale_fairseq.data.images.reading import load_image
        from torchscale_fairseq.data.problems import Problems
        images = [Path(name) for name in {[str(image) for image in images]}]
        print("kept", readable_images(images, 32, Path({str(tmp_path)!r}), "train", Problems(skip=True)))
        assert "pyvips" not in sys.modules
        with ProcessPoolExecutor(1) as pool:
            print("read", pool.submit(load_image, images[0], 32).result().shape)
    """
    printed = run_beside_fairseq(code, plugin=False, timeout=60).check().stdout
    assert "kept [0, 2]" in printed and "read torch.Size([3, 32, 32])" in printed


def test_nothing_is_remembered_where_nothing_can_be_written(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "index").write_text("no folder")
    assert check(images, tmp_path) == [0, 2]
