"""The dictionary of a data folder with a SentencePiece model: its dict.txt, or else XLM-R's numbering of the pieces."""

from pathlib import Path
from typing import Any

from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.pieces import MASK, PieceEncoder, TextEncoder, load_dictionary

MODELS = ("sentencepiece.bpe.model", "beit3.spm")
"""Names of the model's file; the second comes with the released BEiT-3."""
CONTROLS = 3
"""<unk>, <s> and </s>, the first pieces of XLM-R's models."""


def pieces_of(data: Path) -> Path:
    """The SentencePiece model of a data folder, whether it exists or not."""
    return next((data / name for name in MODELS if (data / name).exists()), data / MODELS[0])


def load_words(data: Path) -> Any:
    """fairseq's Dictionary of a data folder, with <mask>.

    Raises:
        DataError: a file is missing or broken.
    """
    if not (data / "dict.txt").exists() and pieces_of(data).exists():
        return numbered_as_xlmr(PieceEncoder(pieces_of(data)))
    return load_dictionary(data / "dict.txt", with_mask=True)


def load_text_encoder(data: Path, dictionary: Any, problems: Problems) -> TextEncoder:
    """The encoder of text into a data folder's numbers.

    Args:
        data: the folder.
        dictionary: that ``load_words`` returned.
        problems: takes pieces that the dictionary lacks.

    Raises:
        DataError: the SentencePiece model is missing, or does not fit the dictionary.
    """
    return TextEncoder(PieceEncoder(pieces_of(data)), dictionary, data / "dict.txt", problems)


def numbered_as_xlmr(pieces: PieceEncoder) -> Any:
    """fairseq's Dictionary of a SentencePiece model, numbered as XLM-R's tokenizer does (arXiv:1911.02116): <s>, <pad>,
    </s> and <unk>, then the model's pieces in its order, and <mask> as the last."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for number, piece in enumerate(pieces.pieces()[CONTROLS:], CONTROLS):
        dictionary.add_symbol(f"<unused{number}>" if piece is None else piece)
    dictionary.add_symbol(MASK)
    return dictionary
