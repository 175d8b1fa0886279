"""COMET, a learned metric of translation that also reads the source (Rei et al., arXiv:2009.09025)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError


def comet_scores(
    model: str, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
) -> list[float]:
    """The score of each translation, by the package unbabel-comet, on a GPU if there is one.

    Args:
        model: a checkpoint (.ckpt) on this machine, or the name of a model that the package downloads.
        sources, hypotheses, references: a sentence each.

    Raises:
        InputError: there is no such model.
        ModuleNotFoundError: unbabel-comet is not installed.
    """
    import torch

    triples = zip(sources, hypotheses, references, strict=True)
    data = [{"src": source, "mt": hypothesis, "ref": reference} for source, hypothesis, reference in triples]
    found = _load(model).predict(data, batch_size=8, gpus=int(torch.cuda.is_available()))
    return [float(score) for score in found.scores]


def _load(model: str) -> Any:
    from comet import download_model, load_from_checkpoint

    if Path(model).is_file():
        return load_from_checkpoint(model)
    if model.endswith(".ckpt"):
        raise InputError(
            f"--comet {model} does not exist; give a checkpoint of COMET, or a name such as Unbabel/wmt22-comet-da"
        )
    try:
        path = download_model(model)
    except (KeyError, OSError, ValueError) as error:
        raise InputError(
            f"--comet {model} cannot be downloaded ({type(error).__name__}: {error}); download its checkpoint "
            "elsewhere and give the file, such as model.ckpt"
        ) from error
    return load_from_checkpoint(path)
