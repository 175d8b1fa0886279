"""Images together with texts, and something to predict of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from numpy.typing import NDArray
from torch import Tensor

from torchscale_fairseq.data.drawn_order import DrawnOrder
from torchscale_fairseq.data.images.index import Line
from torchscale_fairseq.data.images.reading import load_image
from torchscale_fairseq.data.text.masking import Masking

Example = dict[str, Any]


class ImagesWithText(DrawnOrder):
    """Lines of an index as batches.

    Args:
        lines: with one image each, or with two.
        tokens: of each line's text, without <s> and </s>.
        targets: of each line, or None where nothing is predicted.
        dictionary: of the tokens.
        img_size: height and width in pixels.
        patches: of an image.
        shuffle: whether the order changes between epochs.
        seed: of the order, and of masks.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        tokens: Sequence[NDArray[np.int64]],
        targets: Sequence[Tensor] | Tensor | None,
        *,
        dictionary: Any,
        img_size: int,
        patches: int,
        shuffle: bool,
        seed: int,
    ):
        super().__init__(len(lines), shuffle=shuffle, groups=None, seed=seed)
        self.lines, self.tokens, self.targets = lines, tokens, targets
        self.dictionary = dictionary
        self.img_size, self.patches = img_size, patches

    def __getitem__(self, index: int) -> Example:
        place = int(self.order[index])
        images = torch.stack([load_image(path, self.img_size) for path in self.lines[place].images])
        example = {"id": place, "images": images if len(images) > 1 else images[0]}
        return example | self.read(place, index)

    def read(self, place: int, index: int) -> Example:
        """The tokens that the model reads of a line, and the line's target."""
        target = {} if self.targets is None else {"target": self.targets[place]}
        return {"tokens": self.framed(self.tokens[place]), **target}

    def framed(self, tokens: NDArray[np.int64]) -> Tensor:
        """Tokens between <s> and </s>."""
        return torch.from_numpy(np.concatenate(([self.dictionary.bos()], tokens, [self.dictionary.eos()])))

    def collater(self, examples: list[Example]) -> dict[str, Any]:
        """A batch: images (batch, 3, img_size, img_size), or (batch, 2, ...), tokens (batch, words), and targets."""
        if not examples:
            return {}
        tokens = self.padded([example["tokens"] for example in examples])
        batch = {
            "id": torch.tensor([example["id"] for example in examples]),
            "nsentences": len(examples),
            "ntokens": int(tokens.ne(self.dictionary.pad()).sum()),
            "net_input": {"images": torch.stack([example["images"] for example in examples]), "tokens": tokens},
        }
        if "target" in examples[0]:
            batch["target"] = self.joined([example["target"] for example in examples])
        return batch

    def padded(self, rows: list[Tensor]) -> Tensor:
        """Rows of tokens as one tensor, padded on the right."""
        padded: Tensor = data_utils.collate_tokens(rows, self.dictionary.pad())
        return padded

    def joined(self, targets: list[Tensor]) -> Tensor:
        """The targets of a batch."""
        return torch.stack(targets)

    def num_tokens(self, index: int) -> int:
        """Tokens and patches of a line."""
        place = int(self.order[index])
        return len(self.tokens[place]) + 2 + (self.patches + 1) * len(self.lines[place].images)

    def size(self, index: int) -> int:
        """The size of a line, as ``num_tokens`` counts it."""
        return self.num_tokens(index)


class MaskedCaptions(ImagesWithText):
    """Images whose captions are masked and predicted; </s> may be among the masked words.

    Args:
        lines, tokens: as for ``ImagesWithText``.
        masking: of the captions.
        options: further arguments of ``ImagesWithText``.
    """

    def __init__(self, lines: Sequence[Line], tokens: Sequence[NDArray[np.int64]], masking: Masking, **options: Any):
        super().__init__(lines, tokens, None, **options)
        self.masking = masking

    def read(self, place: int, index: int) -> Example:
        """The masked caption, and as target the words where it is masked, padding elsewhere."""
        rng = self.generator(index if self.shuffle else place)
        whole = np.append(self.tokens[place], self.dictionary.eos())
        read, wanted = self.masking(whole, rng)
        target = np.where(wanted, whole, self.dictionary.pad())
        return {
            "tokens": torch.from_numpy(np.append(self.dictionary.bos(), read)),
            "target": torch.from_numpy(np.append(self.dictionary.pad(), target)),
        }

    def joined(self, targets: list[Tensor]) -> Tensor:
        """The targets of a batch, padded on the right."""
        return self.padded(targets)
