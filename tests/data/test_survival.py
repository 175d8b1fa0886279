"""Tables of survival, and where time is cut into bins."""

from pathlib import Path

import pytest
import torch

from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.survival import bins_of, read_survival, time_edges


def write(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    """A table beside the images a.png to f.png."""
    for name in "abcdef":
        (folder / f"{name}.png").touch()
    path = folder / "survival.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    """Columns in any order, others between them; as a spreadsheet writes it, with a mark of its encoding; quotes."""
    lines = ["event,age, time,image", '1,60,12.5,"a.png"', "0.0,71,0, b.png", ""]
    table = read_survival(write(tmp_path, *lines, encoding="utf-8-sig"))
    assert table.images == [tmp_path / "a.png", tmp_path / "b.png"]
    assert table.times.tolist() == [12.5, 0.0] and table.times.dtype == torch.float64
    assert table.events.tolist() == [True, False]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,days,event", "a.png,1,1"], r"survival\.csv has no column time, but image, days, event; the columns"),
        ([""], r"survival\.csv has no column image, but none at all"),
        (["image,time,event"], r"survival\.csv has no row"),
        (["image,time,event", "a.png,1,0", "b.png,2,0"], r"has no event: all its 2 rows are censored \(event 0\)"),
        (["image,time,event", "a.png,1,1", "g.png,2,1"], r"line 3 names .*g\.png, which does not exist"),
        (
            ["image,time,event", "a.png,1,1", "b.png,2,0", "a.png,3,1"],
            r"line 4 names .*a\.png again, which line 2 does",
        ),
        (["image,time,event", "a.png,-0.5,1"], r"line 2 has the time -0\.5; it should be a number that is at least 0"),
        (["image,time,event", "a.png,soon,1"], r"line 2 has the time soon; it should be a number"),
        (["image,time,event", "a.png,nan,1"], r"line 2 has the time nan; it should be a number"),
        (["image,time,event", "a.png,inf,0"], r"line 2 has the time inf; it should be a number"),
        (["image,time,event", "a.png,1,2"], r"line 2 has the event 2; it should be 1 where it was seen, and 0"),
        (["image,time,event", "a.png,1,yes"], r"line 2 has the event yes; it should be 1"),
        (["image,time,event", "a.png,1"], r"line 2 is not complete; the columns image, time and event are needed"),
        (["image,time,event", "a.png,,1"], r"line 2 is not complete"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_survival(write(tmp_path, *lines))
    assert "\n" not in str(raised.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.csv: No such file or directory; the columns image, time"):
        read_survival(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_bytes(b"image,time,event\n\xff\xfe,1,1\n")
    with pytest.raises(DataError, match=r"other\.csv is not a CSV file in UTF-8"):
        read_survival(tmp_path / "other.csv")


def test_bins_have_equally_many_events(tmp_path: Path) -> None:
    """Edges are quantiles of 1, 2, 3 and 6; what is censored, at 100, does not matter for them."""
    lines = ["image,time,event", "a.png,3,1", "b.png,1,1", "c.png,100,0", "d.png,6,1", "e.png,2,1", "f.png,0,0"]
    table = read_survival(write(tmp_path, *lines))
    assert time_edges(table, 2) == [2.5]
    assert time_edges(table, 4) == [1.75, 2.5, 3.75]
    assert bins_of(table.times, [1.75, 2.5, 3.75]).tolist() == [2, 0, 3, 3, 1, 0]


def test_a_bin_holds_the_time_at_which_it_begins() -> None:
    times = torch.tensor([0.0, 0.999, 1.0, 1.5, 2.0, 9.0], dtype=torch.float64)
    assert bins_of(times, [1.0, 2.0]).tolist() == [0, 0, 1, 1, 2, 2]


def test_bins_without_events_are_refused(tmp_path: Path) -> None:
    lines = ["image,time,event", "a.png,1,1", "b.png,1,1", "c.png,2,1", "d.png,2,1", "e.png,2,1", "f.png,9,0"]
    with pytest.raises(DataError, match=r"--time-bins \(4\) would leave .* are at 2 different times; use 2"):
        time_edges(read_survival(write(tmp_path, *lines)), 4)
    with pytest.raises(DataError, match=r"at 1 different times; fewer do not help"):
        time_edges(read_survival(write(tmp_path, *lines[:3])), 4)
