"""The dependence of a model on fairseq's dictionary."""

from typing import Any

from fairseq import utils
from torch import Tensor

from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.core.layers.embedding import TextEmbedding

FAIRSEQ_CONSTANTS = ("version", "embed_positions._float_tensor", "embed_positions.weights")
"""Entries of TorchScale's checkpoints that are not parameters."""


def token_embedding(dictionary: Any, width: int, path: str | None = None) -> TextEmbedding:
    """A fresh embedding of a dictionary, or one that starts from a text file of vectors."""
    embedding = TextEmbedding(len(dictionary), width, padding_idx=dictionary.pad())
    if path:
        utils.load_embedding(utils.parse_embedding(path), dictionary, embedding)
    return embedding


def upgrade_state_dict(state_dict: dict[str, Tensor], name: str, dictionary: Any) -> None:
    """Drop constants from one side's part of a state dict, in place, and compare its vocabulary.

    Args:
        state_dict: of the whole model.
        name: of the side, such as "decoder".
        dictionary: that of the data.

    Raises:
        CheckpointError: the state dict was trained with a dictionary of another size.
    """
    for constant in FAIRSEQ_CONSTANTS:
        state_dict.pop(f"{name}.{constant}", None)
    embedding = state_dict.get(f"{name}.embed_tokens.weight")
    if embedding is not None and embedding.size(0) != len(dictionary):
        raise CheckpointError(
            f"the checkpoint's {name} was trained with a dictionary of {embedding.size(0)} entries, and this data has "
            f"{len(dictionary)}; give the data directory whose dict.txt it was trained with, or binarise this data "
            "with that file (fairseq-preprocess --srcdict)."
        )
