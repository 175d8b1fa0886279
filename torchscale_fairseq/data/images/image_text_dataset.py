"""Images with captions, masked for pretraining, and with a caption of another image for matching."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from torch import Tensor

from torchscale_fairseq.data.drawn_images import DrawnImages
from torchscale_fairseq.data.images.captions import Captioned
from torchscale_fairseq.data.images.reading import load_image
from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.masking import Masking, draw_mask
from torchscale_fairseq.data.text.pieces import TextEncoder

Example = dict[str, Any]


class ImageTextDataset(DrawnImages):
    """Pairs of an image and its caption.

    Args:
        pairs: of the split.
        encoder: text to tokens.
        dictionary: of the tokens.
        max_tokens: longest caption, <s> and </s> included.
        img_size: height and width in pixels.
        patches: of an image.
        masking: of captions.
        image_mask_prob: share of patches that are hidden.
        seed: of masks and wrong captions.
        fixed: draw the same every epoch, as for validation.
        problems: takes captions that are too long.

    Raises:
        DataError: a caption is too long.
    """

    def __init__(
        self,
        pairs: Sequence[Captioned],
        encoder: TextEncoder,
        dictionary: Any,
        *,
        max_tokens: int,
        img_size: int,
        patches: int,
        masking: Masking,
        image_mask_prob: float,
        seed: int,
        fixed: bool,
        problems: Problems,
    ):
        self.dictionary = dictionary
        self.img_size = img_size
        self.patches = patches
        self.masking = masking
        self.image_mask_prob = image_mask_prob
        self.seed = seed
        self.fixed = fixed
        self.epoch = 1
        tokens, counts = encoder([pair.caption.encode() for pair in pairs])
        captions = np.split(tokens, np.cumsum(counts)[:-1])
        sizes = counts + 2
        long = np.flatnonzero(sizes > max_tokens)
        if len(long):
            longest = int(sizes.argmax())
            problems.found(
                "captions that are too long",
                f"the caption of {pairs[longest].image} has {sizes[longest]} tokens, more than --max-source-positions "
                f"({max_tokens}); shorten the caption, or train a new model with room for more",
                len(long),
            )
        kept = np.flatnonzero(sizes <= max_tokens)
        self.pairs = [pairs[place] for place in kept]
        self._captions = [captions[place] for place in kept]
        self._sizes = sizes[kept]

    def __getitem__(self, index: int) -> Example:
        epoch = 0 if self.fixed else self.epoch
        rng = np.random.default_rng((self.seed, epoch, index))
        caption = self._captions[index]
        read, wanted = self.masking(caption, rng)
        return {
            "id": index,
            "image": load_image(self.pairs[index].image, self.img_size),
            "masked_patches": torch.from_numpy(draw_mask(rng, self.patches, self.image_mask_prob, 1.0)),
            "caption": self._framed(caption),
            "masked_caption": self._framed(read),
            "wanted": torch.from_numpy(np.pad(wanted, 1)),
            "other_caption": self._framed(self._captions[self._other(index, rng)]),
        }

    def collater(self, examples: list[Example]) -> dict[str, Any]:
        """A batch: images, patches to hide, captions whole and masked, where words are wanted, and wrong captions."""
        if not examples:
            return {}

        def padded(name: str, fill: int) -> Tensor:
            return data_utils.collate_tokens([example[name] for example in examples], fill)

        captions = padded("caption", self.dictionary.pad())
        return {
            "id": torch.tensor([example["id"] for example in examples]),
            "nsentences": len(examples),
            "ntokens": int(captions.ne(self.dictionary.pad()).sum()),
            "net_input": {
                "images": torch.stack([example["image"] for example in examples]),
                "masked_patches": torch.stack([example["masked_patches"] for example in examples]),
                "captions": captions,
                "masked_captions": padded("masked_caption", self.dictionary.pad()),
                "wanted": padded("wanted", 0),
                "other_captions": padded("other_caption", self.dictionary.pad()),
            },
        }

    def set_epoch(self, epoch: int) -> None:
        """Draw other masks and wrong captions."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def num_tokens(self, index: int) -> int:
        """Tokens and patches of an example."""
        return int(self._sizes[index]) + self.patches + 1

    def size(self, index: int) -> int:
        """The size of a pair, as ``num_tokens`` counts it."""
        return self.num_tokens(index)

    def ordered_indices(self) -> Any:
        """All examples, shuffled unless it is for validation."""
        if self.fixed:
            return np.arange(len(self))
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self))

    def _framed(self, tokens: Any) -> Tensor:
        return torch.from_numpy(np.concatenate(([self.dictionary.bos()], tokens, [self.dictionary.eos()])))

    def _other(self, index: int, rng: np.random.Generator) -> int:
        """An example with another caption; there is one, since not all are the same."""
        while True:
            other = int(rng.integers(len(self)))
            if self.pairs[other].caption != self.pairs[index].caption:
                return other
