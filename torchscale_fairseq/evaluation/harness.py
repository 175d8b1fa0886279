"""Causal models of checkpoints for EleutherAI's evaluation harness (lm-eval), by way of transformers."""

import importlib
import tempfile
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.huggingface.kinds import CAUSAL, EOS
from torchscale_fairseq.export.huggingface.writing import export

MODEL = "torchscale_fairseq"
"""Its name for ``--model`` of lm_eval, under which pyproject.toml declares it as well."""


class CheckpointLM(HFLM):
    """A checkpoint of fairseq, exported to a temporary folder. Texts begin after </s>, as in training.

    Args:
        checkpoint: of a causal model.
        data: the folder of its dictionary; by default that of the training.
        sentencepiece: its SentencePiece model; by default the one in that folder.
        options: of the harness's model for transformers: batch_size, max_length, device, dtype.

    Raises:
        InputError: the checkpoint or the dictionary does not fit, or the model is not causal.
    """

    def __init__(self, checkpoint: str, data: str | None = None, sentencepiece: str | None = None, **options: Any):
        self._scratch = tempfile.TemporaryDirectory()
        folder = Path(self._scratch.name) / "model"
        dictionaries = Dictionaries(*(None if path is None else Path(path) for path in (data, sentencepiece)))
        note = export(Path(checkpoint), folder, dictionaries)
        if CAUSAL.model not in note:
            raise InputError(f"{checkpoint} is a {note.partition(' ')[0]}; the harness's tasks need a causal model")
        given = {"pretrained": str(folder), "trust_remote_code": True, "backend": "causal", "prefix_token_id": EOS}
        self._begins_texts = True
        super().__init__(**given, **options)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, given </s> in front of them, which the harness adds itself here."""
        self._begins_texts = False
        try:
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._begins_texts = True
        return found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The numbers of a text's tokens, with </s> in front unless ``add_special_tokens`` is False."""
        begins = self._begins_texts if add_special_tokens is None else add_special_tokens
        numbers: list[int] = super().tok_encode(string, begins, **options)
        return numbers


def register() -> None:
    """Make the harness know the model, unless it has found the entry point of this package by itself, as versions after
    0.4.13 do."""
    from lm_eval.api.registry import MODEL_REGISTRY, register_model

    importlib.import_module("lm_eval.models")  # which registers the models of the harness
    if MODEL not in MODEL_REGISTRY:
        register_model(MODEL)(CheckpointLM)
