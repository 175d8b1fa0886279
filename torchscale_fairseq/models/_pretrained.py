"""``from_pretrained`` that finds what its caller did not name."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq import hub_utils
from fairseq.utils import split_paths

from torchscale_fairseq.checkpoints.reading import CheckpointError, load_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.text.pieces import WORD_START
from torchscale_fairseq.data.text.tokenizers import find_tokenizer, is_fast
from torchscale_fairseq.data.text.words import pieces_of


class Pretrained:
    """Goes before fairseq's class in a model's bases."""

    hub: Any = hub_utils.GeneratorHubInterface
    """The class of the interface that from_pretrained returns."""
    needs_data = True
    """Whether dictionaries are read from the data's folder."""

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        checkpoint_file: str | None = None,
        data_name_or_path: str | None = None,
        **overrides: Any,
    ) -> Any:
        """Load a trained model for use in Python.

        Args:
            model_name_or_path: directory of checkpoints, such as --save-dir of a run.
            checkpoint_file: names in it, several (an ensemble) separated by ``os.pathsep``; checkpoint_best.pt
                or else checkpoint_last.pt by default.
            data_name_or_path: directory of the dictionaries; by default the one it was trained with. A relative one is
                looked for in the folders above the checkpoint, and then in the working directory.
            overrides: options of the task; the tokenizer of the training, or the one next to the dictionaries, is used
                by default.

        Returns:
            For translation and language models fairseq's GeneratorHubInterface: ``.translate(text)`` or
            ``.sample(text)``; ``.score(text)``, ``.models``. For speech models ``SpeechHub``: ``.transcribe(file)``.
            For the others an interface of ``_hubs.py``.

        Raises:
            FileNotFoundError: there is no checkpoint.
            CheckpointError: the folder of the data is not where the checkpoint says.
            InputError: the dictionary is one of SentencePiece, whose model is not there.
        """
        directory = Path(model_name_or_path)
        file = checkpoint_file or _newest_checkpoint(directory)
        first = directory / file.split(os.pathsep)[0]
        options = _options_of(first) if cls.needs_data else {}
        data = data_name_or_path or (_data_of(first, options) if cls.needs_data else ".")
        if not Path(data).exists():
            raise CheckpointError(f"data_name_or_path ({data}) does not exist; name the folder of the dictionaries.")
        pieces = pieces_of(Path(data))
        if "bpe" not in overrides:
            overrides |= _tokenizer_options(options, data)
        loaded = hub_utils.from_pretrained(model_name_or_path, file, data, archive_map={}, **overrides)
        if "bpe" not in overrides:
            _check_words(loaded["task"].source_dictionary, pieces)
        return cls.hub(loaded["args"], loaded["task"], loaded["models"])


def _newest_checkpoint(directory: Path) -> str:
    for name in ("checkpoint_best.pt", "checkpoint_last.pt", "model.pt"):
        if (directory / name).exists():
            return name
    raise FileNotFoundError(
        f"{directory} holds neither checkpoint_best.pt nor checkpoint_last.pt; name one with checkpoint_file."
    )


def _options_of(checkpoint: Path) -> dict[str, Any]:
    """The options of the task that a checkpoint was trained with."""
    state = load_checkpoint(checkpoint)
    options = state["cfg"]["task"] if state.get("cfg") else state["args"]
    return vars(options) if isinstance(options, Namespace) else dict(options)  # tasks without a dataclass


def _tokenizer_options(options: dict[str, Any], data: str) -> dict[str, Any]:
    """fairseq's options of the tokenizer of the training, or else of the one in a folder."""
    named = options.get("tokenizer_file") or options.get("spm_model")
    found = find_tokenizer(data) or str(pieces_of(Path(data)))
    file = named if named and Path(named).is_file() else found
    if not Path(file).exists():
        return {}
    if is_fast(file):
        return {"bpe": "fast_tokenizer", "tokenizer_file": file}
    return {"bpe": "sentencepiece", "sentencepiece_model": file}


def _data_of(checkpoint: Path, options: dict[str, Any]) -> str:
    """The folder of the dictionaries that a checkpoint was trained with.

    A relative path was meant from where the training was started, which no checkpoint says: it is looked for in the
    folders above the checkpoint, and then in the working directory.
    """
    given = options.get("data")
    if not given:
        raise CheckpointError(f"{checkpoint} does not say where its data was; name the directory: data_name_or_path.")
    first = split_paths(given)[0]
    for base in (*checkpoint.resolve().parents, Path.cwd()):
        if (base / first).exists():
            return str(base / first)
    raise CheckpointError(
        f"{checkpoint} was trained on {first}, which is not there; name the folder of its dictionaries: "
        "data_name_or_path."
    )


def _check_words(dictionary: Any, pieces: Path) -> None:
    if dictionary is not None and any(symbol.startswith(WORD_START) for symbol in dictionary.symbols):
        raise InputError(
            f"the dictionary is one of SentencePiece, and {pieces} is not there; put the model there, name another by "
            "bpe='sentencepiece', sentencepiece_model=PATH, or give bpe=None for text that is in pieces already."
        )
