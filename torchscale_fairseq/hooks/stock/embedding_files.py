"""``--encoder-embed-path`` and ``--decoder-embed-path``: files of vectors that a model begins from.

In stock fairseq a checkpoint that began from such a file needs it for ever, and a file that is missing, broken or of
another width ends in an error that does not name the option.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError

OPTIONS = ("encoder_embed_path", "decoder_embed_path")
_FLAGS = "--encoder-embed-path (or --decoder-embed-path)"


def build_without_files(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.models.build_model``: a model that gets a checkpoint's weights begins from no file."""

    def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
        for name in OPTIONS:
            if from_checkpoint and getattr(cfg, name, None):
                setattr(cfg, name, None)
        return stock(cfg, task, from_checkpoint)

    return build_model


def parse_with_names(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.utils.parse_embedding``.

    Raises:
        InputError: there is no such file, or it is not one of vectors.
    """

    def parse_embedding(embed_path: str) -> Any:
        if not Path(embed_path).is_file():
            raise InputError(
                f"{_FLAGS} {embed_path} is not there; mend the path, or leave the option out if this run resumes from "
                "a checkpoint."
            )
        try:
            return stock(embed_path)
        except (StopIteration, ValueError):
            raise InputError(
                f"{_FLAGS} {embed_path} is not a file of vectors: a line with their number and width, then lines of a "
                "word and its entries, separated by spaces."
            ) from None

    return parse_embedding


def load_of_a_width(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.utils.load_embedding``.

    Raises:
        InputError: the vectors are not as wide as the model's.
    """

    def load_embedding(embed_dict: dict[str, Any], vocab: Any, embedding: Any) -> Any:
        width = embedding.weight.size(1)
        wrong = next((word for word, vector in embed_dict.items() if len(vector) != width), None)
        if wrong is not None:
            raise InputError(
                f"{_FLAGS}: the vector of {wrong!r} has {len(embed_dict[wrong])} entries, and the model's embedding "
                f"{width}; give that width as --encoder-embed-dim (or --decoder-embed-dim), or another file."
            )
        return stock(embed_dict, vocab, embedding)

    return load_embedding
