"""TensorBoard logs as fairseq-train writes them."""

import math
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


def write_logs(run: Path, **inner: float) -> Path:
    """Two points of each scalar, the second twice the first; a loss of 3 and 2 in validation."""
    for log, scalars in (("train_inner", inner), ("valid", {"nll_loss": 3.0})):
        with SummaryWriter(str(run / "tensorboard" / log)) as writer:
            for name, value in scalars.items():
                writer.add_scalar(name, value, 10)
                writer.add_scalar(name, 2.0 if name == "nll_loss" else 2 * value, 20)
    return run


def scalars(folder: Path, run: str) -> dict[str, dict[int, float]]:
    """Figures of one of a run's logs, by tag and update."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / run))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def total(norms: dict[str, dict[int, float]], what: str, update: int) -> float:
    """Norm over all layers, from the norms of the layers."""
    return math.sqrt(sum(v[update] ** 2 for tag, v in norms.items() if tag.startswith(f"{what}/")))
