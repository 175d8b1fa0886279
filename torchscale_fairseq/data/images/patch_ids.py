"""The ids that a tokenizer gives the patches of images, in an index: a JSON object a line."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchscale_fairseq.data.images.index import Format, line_of
from torchscale_fairseq.data.images.lines import read_lines
from torchscale_fairseq.data.problems import DataError, Problems

FORMAT = Format(text=(), example='{"image_path": "images/1.png", "patch_ids": [5, 0, 17, 3]}')


def read_patch_ids(index: Path, patches: int, vocab_size: int, problems: Problems) -> tuple[list[Path], Tensor]:
    """Images and the ids of their patches, row by row.

    Args:
        index: of the split; images are named relative to its folder.
        patches: of an image.
        vocab_size: ids of the tokenizer, from 0 on.
        problems: takes invalid lines.

    Returns:
        Files, and ids (images, patches) of int64.

    Raises:
        DataError: the index is missing, or a line lacks its image or an id for each patch.
    """
    lines = read_lines(index, FORMAT.example, problems, partial(_image_and_ids, index.parent, patches, vocab_size))
    if not lines:
        raise DataError(f"{index} has no valid line; its lines are such as {FORMAT.example}.")
    images, ids = zip(*lines, strict=True)
    return list(images), torch.from_numpy(np.stack(ids).astype(np.int64))


def _image_and_ids(
    folder: Path, patches: int, vocab_size: int, content: Any, where: str
) -> tuple[Path, NDArray[np.int32]]:
    line = line_of(folder, FORMAT, content, where)
    ids = content.get("patch_ids")
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise DataError(f"{where} has no patch_ids; it should be such as {FORMAT.example}.")
    if len(ids) != patches:
        raise DataError(
            f"{where} has {len(ids)} patch_ids, and an image has {patches} patches; change --img-size or --patch-size, "
            "or the tokenizer."
        )
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise DataError(
            f"{where} has patch_ids from {min(ids)} to {max(ids)}; they must be from 0 to --patch-vocab-size "
            f"({vocab_size}) - 1."
        )
    return line.images[0], np.array(ids, dtype=np.int32)
