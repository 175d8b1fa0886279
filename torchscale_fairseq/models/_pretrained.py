"""``from_pretrained`` that finds what its caller did not name."""

import os
from pathlib import Path
from typing import Any

from torchscale_fairseq.hooks.checkpoints import CheckpointError, load_checkpoint


class Pretrained:
    """Goes before fairseq's class in a model's bases."""

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        checkpoint_file: str | None = None,
        data_name_or_path: str | None = None,
        **overrides: Any,
    ) -> Any:
        """Load a trained model for reading and writing text.

        Args:
            model_name_or_path: directory of checkpoints, such as --save-dir of a run.
            checkpoint_file: names in it, several (an ensemble) separated by ``os.pathsep``; checkpoint_best.pt
                or else checkpoint_last.pt by default.
            data_name_or_path: directory of the dictionaries; the one it was trained with by default.
            overrides: options of the task; a sentencepiece.bpe.model beside the dictionaries is used by default.

        Returns:
            fairseq's GeneratorHubInterface: ``.translate(text)`` or, of a language model, ``.sample(text)``;
            ``.score(text)``, ``.models``.

        Raises:
            FileNotFoundError: there is no checkpoint.
            CheckpointError: the checkpoint does not say where its data was.
        """
        directory = Path(model_name_or_path)
        file = checkpoint_file or _newest_checkpoint(directory)
        data = data_name_or_path or _data_of(directory / file.split(os.pathsep)[0])
        pieces = Path(data) / "sentencepiece.bpe.model"
        if pieces.exists() and "bpe" not in overrides:
            overrides |= {"bpe": "sentencepiece", "sentencepiece_model": str(pieces)}
        return super().from_pretrained(model_name_or_path, file, data, **overrides)  # type: ignore[misc]


def _newest_checkpoint(directory: Path) -> str:
    for name in ("checkpoint_best.pt", "checkpoint_last.pt", "model.pt"):
        if (directory / name).exists():
            return name
    raise FileNotFoundError(
        f"{directory} holds neither checkpoint_best.pt nor checkpoint_last.pt; name one with checkpoint_file."
    )


def _data_of(checkpoint: Path) -> str:
    state = load_checkpoint(checkpoint)
    options = state["cfg"]["task"] if state.get("cfg") else vars(state["args"])
    if not options.get("data"):
        raise CheckpointError(f"{checkpoint} does not say where its data was; name the directory: data_name_or_path.")
    return os.path.abspath(options["data"])
