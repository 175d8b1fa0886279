"""``--task image_text``: images with captions, for BEiT-3."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.images.captions import read_captions
from torchscale_fairseq.data.images.check import readable_images
from torchscale_fairseq.data.images.image_text_dataset import ImageTextDataset
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.masking import Masking
from torchscale_fairseq.data.text.pieces import TextEncoder
from torchscale_fairseq.data.text.words import load_text_encoder, load_words
from torchscale_fairseq.tasks._dictionary import OneDictionary
from torchscale_fairseq.tasks._pretrained import StartsFromWeights

from ._images import SKIP_INVALID, check_size, check_whole_patches


@dataclass
class ImageTextConfig(FairseqDataclass):
    """Options of the task."""

    data: str = field(
        default=MISSING,
        metadata={"help": "directory with train.jsonl, valid.jsonl, sentencepiece.bpe.model (or beit3.spm), dict.txt"},
    )
    img_size: int = field(default=224, metadata={"help": "scale images to squares of this many pixels a side"})
    patch_size: int = field(default=16, metadata={"help": "height and width of a patch in pixels"})
    max_source_positions: int = field(default=64, metadata={"help": "maximum length of a caption in tokens"})
    mask_prob: float = field(default=0.5, metadata={"help": "fraction of a caption's tokens to predict"})
    image_mask_prob: float = field(default=0.4, metadata={"help": "fraction of an image's patches to predict"})
    skip_invalid: bool = field(default=False, metadata={"help": SKIP_INVALID})
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


@register_task("image_text", dataclass=ImageTextConfig)
class ImageTextTask(OneDictionary, StartsFromWeights):
    """Reads images and captions, and makes batches for the criterion image_text.

    Args:
        cfg: the options.
        dictionary: of the captions.

    Raises:
        InputError: an option is out of its range.
    """

    cfg: ImageTextConfig

    def __init__(self, cfg: ImageTextConfig, dictionary: Any):
        super().__init__(cfg)
        self.dictionary = dictionary
        if not 0 < cfg.image_mask_prob < 1:
            raise InputError(f"--image-mask-prob ({cfg.image_mask_prob}) must lie between 0 and 1.")
        check_whole_patches("--img-size", cfg.img_size, cfg.patch_size)
        self.masking = Masking.over(
            dictionary, mask_prob=cfg.mask_prob, span_length=1.0, leave_unmasked_prob=0.1, random_token_prob=0.1
        )

    @classmethod
    def setup_task(cls, cfg: ImageTextConfig, **_: Any) -> "ImageTextTask":
        """Make the task with its dictionary.

        Raises:
            DataError: the dictionary is missing or broken.
        """
        return cls(cfg, load_words(Path(cfg.data)))

    def text_encoder(self, problems: Problems | None = None) -> TextEncoder:
        """The encoder of captions into tokens.

        Raises:
            DataError: the tokenizer is missing, or does not fit the dictionary.
        """
        return load_text_encoder(Path(self.cfg.data), self.dictionary, problems or Problems(skip=False))

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool, keep_optimizer: bool) -> None:
        """Check a checkpoint before a run resumes from it.

        Raises:
            InputError: see ``check_size``.
        """
        if keep_optimizer:
            check_size(state, self.cfg.img_size)

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Args:
            split: such as "train", for train.jsonl.

        Raises:
            DataError: something is wrong with the data.
        """
        cfg, data = self.cfg, Path(self.cfg.data)
        problems = Problems(skip=cfg.skip_invalid)
        encoder = self.text_encoder(problems)
        captions = data / f"{split}.jsonl"
        pairs = read_captions(captions, problems)
        kept = readable_images([pair.image for pair in pairs], cfg.img_size, data, split, problems)
        dataset = ImageTextDataset(
            [pairs[place] for place in kept],
            encoder,
            self.dictionary,
            max_tokens=cfg.max_source_positions,
            img_size=cfg.img_size,
            patches=(cfg.img_size // cfg.patch_size) ** 2,
            masking=self.masking,
            image_mask_prob=cfg.image_mask_prob,
            seed=cfg.seed,
            fixed=split != cfg.train_subset,
            problems=problems,
        )
        problems.report(split)
        if len({pair.caption for pair in dataset.pairs}) < 2:
            raise DataError(
                f"{captions} has {len(dataset)} captions, all the same; matching needs at least two different ones."
            )
        self.datasets[split] = dataset

    def max_positions(self) -> None:
        """Lengths are checked when a split is opened."""
