"""Tables of survival: for each image, when an event was seen, or until when none was."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.tables import read_rows

COLUMNS = ("image", "time", "event")
NEEDED = "the columns image, time and event are needed"


@dataclass(frozen=True)
class Survival:
    """A table, row by row."""

    path: Path
    images: list[Path]
    times: Tensor
    """(images,), float64, in any unit."""
    events: Tensor
    """(images,), True where the event was seen at that time, False where it had not come by then (censored)."""


def read_survival(path: Path, problems: Problems | None = None) -> Survival:
    """A CSV file whose first line names its columns, of which others are left aside. Images are named relative to it.

    Args:
        path: of the file.
        problems: takes invalid rows; None raises at the first.

    Raises:
        DataError: the file, a column or an image is missing, a row makes no sense, or all images are censored.
    """
    problems = problems or Problems(skip=False)
    images: dict[Path, int] = {}
    times, events = [], []
    for number, row in read_rows(path, COLUMNS, NEEDED):
        with problems.kind("invalid rows"):
            image, time, event = _read(row, path, number)
            if image in images:
                raise DataError(f"{path}, line {number} names {image} again, which line {images[image]} does.")
            images[image] = number
            times.append(time)
            events.append(event)
    if not images:
        raise DataError(f"{path} has no row; it should have one for each image.")
    if not any(events):
        raise DataError(f"{path} has no event: all its {len(events)} rows are censored (event 0).")
    return Survival(path, list(images), torch.tensor(times, dtype=torch.float64), torch.tensor(events))


def _read(row: dict[str, str], path: Path, number: int) -> tuple[Path, float, bool]:
    where = f"{path}, line {number}"
    if any(row[name] is None or not row[name].strip() for name in COLUMNS):
        raise DataError(f"{where} is not complete; {NEEDED}.")
    image = path.parent / row["image"].strip()
    if not image.is_file():
        raise DataError(f"{where} names {image}, which does not exist.")
    return image, parse_time(row["time"].strip(), where), parse_event(row["event"].strip(), where)


def parse_time(text: str, where: str) -> float:
    """A time that is at least 0; ``where`` names the line for the DataError that is raised otherwise."""
    time = _number(text)
    if not 0 <= time < math.inf:
        raise DataError(f"{where} has the time {text}; it should be a number that is at least 0.")
    return time


def parse_event(text: str, where: str) -> bool:
    """1 for True, 0 for False; ``where`` names the line for the DataError that is raised otherwise."""
    event = _number(text)
    if event not in (0, 1):
        raise DataError(f"{where} has the event {text}; it should be 1 where it was seen, and 0 where it was not.")
    return event == 1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def time_edges(table: Survival, bins: int) -> list[float]:
    """Where all bins of time but the first begin: at quantiles of the times of events, so that each bin has about
    equally many events. The last bin has no end.

    Args:
        table: of the training.
        bins: at least 2, ``--time-bins``.

    Raises:
        DataError: bins would be without event.
    """
    times = table.times[table.events]
    if not _all_have_events(times, bins):
        most = max((fewer for fewer in range(2, bins) if _all_have_events(times, fewer)), default=None)
        advice = f"use {most}" if most else "fewer do not help"
        raise DataError(
            f"--time-bins ({bins}) would leave a bin without event, as the events of {table.path} are at "
            f"{len(times.unique())} different times; {advice}."
        )
    return _quantiles(times, bins)


def _all_have_events(times: Tensor, bins: int) -> bool:
    return bool(torch.bincount(bins_of(times, _quantiles(times, bins)), minlength=bins).all())


def _quantiles(times: Tensor, bins: int) -> list[float]:
    shares = torch.arange(1, bins, dtype=torch.float64) / bins
    edges: list[float] = times.quantile(shares).tolist()
    return edges


def bins_of(times: Tensor, edges: list[float]) -> Tensor:
    """(times,), which bin each is in, counted from 0; a bin holds the time at which it begins."""
    return torch.bucketize(times, torch.tensor(edges, dtype=torch.float64), right=True)
