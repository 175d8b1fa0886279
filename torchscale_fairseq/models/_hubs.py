"""The interfaces that ``from_pretrained`` returns for models that do not generate text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.data.data_utils import collate_tokens
from fairseq.models.roberta import RobertaHubInterface
from torch import Tensor, nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.images.patches import ImagePatches
from torchscale_fairseq.data.images.reading import load_image
from torchscale_fairseq.data.text.lengths import check_length
from torchscale_fairseq.data.text.pieces import MASK, WORD_START, without_spaces_before_masks

HEAD = "sentence_classification_head"
"""The name that fairseq's tasks give to the head."""


class MaskedLanguageHub(RobertaHubInterface):
    """A masked language model that reads text, with the methods of fairseq's RoBERTa (``encode``, ``decode``,
    ``extract_features``, ``fill_mask``, ``predict``) and ``classify``.

    Args:
        cfg: of the checkpoint.
        task: with its dictionary.
        models: one.

    Raises:
        InputError: there are several models.
    """

    def __init__(self, cfg: Any, task: Any, models: list[Any]):
        super().__init__(cfg, task, _single(models))
        self.bpe: Any = self.bpe or _Words()
        task.mask_idx = task.source_dictionary.index(MASK)
        self.eval()

    def extract_features(self, tokens: Tensor, return_all_hiddens: bool = False) -> Any:
        """Features (batch, seq, width) of tokens (batch, seq) or (seq,).

        Args:
            tokens: as from ``encode``.
            return_all_hiddens: return a list of those in front of the first layer and after each.

        Raises:
            ValueError: there are more tokens than the model has positions.
        """
        features = super().extract_features(tokens, return_all_hiddens)
        if return_all_hiddens:  # transposed by the base class, whose layers have the batch second
            return [state.transpose(0, 1) for state in features]
        return features

    def register_classification_head(self, name: str, num_classes: int, inner_dim: int | None = None) -> None:
        """Add a head to the model; arguments as there."""
        self.model.register_classification_head(name, num_classes, inner_dim)

    @torch.no_grad()
    def fill_mask(self, masked_input: str, topk: int = 5) -> list[tuple[str, float, str]]:
        """The likeliest texts in place of one <mask>. Special symbols, which no text contains, are left out.

        Returns:
            The whole text, the probability and the filled in text, the likeliest first.

        Raises:
            InputError: the text has no <mask>, or several.
        """
        if masked_input.count(MASK) != 1:
            raise InputError(
                f"a text to fill must contain one {MASK}, not {masked_input.count(MASK)}: {masked_input!r}."
            )
        dictionary = self.task.source_dictionary
        line = f"<s> {masked_pieces(self.bpe.encode, masked_input)} </s>"
        tokens = dictionary.encode_line(line, append_eos=False, add_if_not_exist=False).long().to(self.device)
        probabilities = self.model(tokens[None])[0][0, tokens == self.task.mask_idx].float().softmax(-1)[0]
        probabilities[: dictionary.nspecial] = probabilities[self.task.mask_idx] = 0
        place = f" {MASK}" if f" {MASK}" in masked_input else MASK
        best = probabilities.topk(topk)
        words = [self._word(dictionary[index]) for index in best.indices]
        return [
            (masked_input.replace(place, word), value, word)
            for word, value in zip(words, best.values.tolist(), strict=True)
        ]

    def _word(self, piece: str) -> str:
        """A piece as it stands in text, with the space in front of a word."""
        word: str = self.bpe.decode(piece)
        return f" {word}" if piece.startswith(WORD_START) else word

    @torch.no_grad()
    def classify(self, *sentences: str, head: str = HEAD) -> dict[str, float]:
        """The probability of each label for a sentence, or for a pair of them, after fine-tuning with --task
        sentence_prediction and --init-token 0."""
        probabilities = self.predict(head, self.encode(*sentences)).exp()[0]
        labels = self.task.label_dictionary.symbols[self.task.label_dictionary.nspecial :]
        return dict(zip(labels, probabilities.tolist(), strict=False))


class _ModelOfFiles(nn.Module):
    """A model with the task that says how images are read.

    Args:
        cfg: of the checkpoint.
        task: that it was trained with.
        models: one.

    Raises:
        InputError: there are several models.
    """

    def __init__(self, cfg: Any, task: Any, models: list[Any]):
        super().__init__()
        self.cfg = cfg
        self.task = task
        self.model = _single(models)
        self.eval()


class ImageHub(_ModelOfFiles):
    """A model of --task image_classification or self_distillation that reads files; the latter classifies none."""

    @torch.no_grad()
    def classify(self, image: str | Path) -> dict[str, str]:
        """The likeliest class and the probability of each; of a survival model, the risk and the survival at each time.

        Returns:
            The columns and cells of ``torchscale-fairseq classify-images``.

        Raises:
            DataError: the file is no image.
        """
        return dict(self.task.reading(self.model([self._patches(image)])[0]))

    def extract_features(self, image: str | Path) -> Tensor:
        """Features (1, patches, width).

        Raises:
            DataError: the file is no image.
        """
        features: Tensor = self.model.extract_features([self._patches(image)])
        return features

    @torch.no_grad()
    def embed_images(self, images: Sequence[str | Path]) -> Tensor:
        """A vector for each image file, (images, width): the normalised features of the class token, or their mean.

        Raises:
            DataError: a file is no image.
        """
        pixels = torch.stack([load_image(Path(image), self.task.cfg.img_size) for image in images])
        vectors: Tensor = self.model.embed_images(pixels.to(next(self.model.parameters()).device))
        return vectors

    def _patches(self, image: str | Path) -> ImagePatches:
        return ImagePatches(Path(image), self.task.cfg.img_size, self.task.cfg.patch_size)


class SlideHub(_ModelOfFiles):
    """A model of --task slide_classification that reads files of tiles."""

    @torch.no_grad()
    def classify(self, slide: str | Path) -> dict[str, str]:
        """The likeliest class and the probability of each; those of labels; or the risk and the survival at each time.

        Raises:
            DataError: the file is no slide.
        """
        return dict(self.task.reading(self.model(**self.task.model_input(Path(slide)))[0]))

    @torch.no_grad()
    def extract_features(self, slide: str | Path) -> Tensor:
        """The slide's embedding (1, width).

        Raises:
            DataError: the file is no slide.
        """
        features: Tensor = self.model.extract_features(**self.task.model_input(Path(slide)))
        return features


class ImageTextHub(_ModelOfFiles):
    """A BEiT-3 that reads image files and texts."""

    def __init__(self, cfg: Any, task: Any, models: list[Any]):
        super().__init__(cfg, task, models)
        self.encoder = task.text_encoder()

    def extract_features(self, image: str | Path | None = None, text: str | None = None) -> Tensor:
        """Features (1, tokens, width) of the class token, the patches and the words that there are, in this order.

        Raises:
            DataError: the file is no image.
            ValueError: there is neither image nor text, or the text is too long.
        """
        pixels = None if image is None else load_image(Path(image), self.task.cfg.img_size)[None]
        features: Tensor = self.model.extract_features(None if text is None else self.encode(text)[None], pixels)
        return features

    @torch.no_grad()
    def embed_images(self, images: Sequence[str | Path], batch_size: int = 32) -> Tensor:
        """A vector for each image file, (images, width): a unit vector of a model of --task image_text_retrieval, the
        class token's feature of the others.

        Raises:
            DataError: a file is no image.
        """

        def of_batch(files: Sequence[str | Path]) -> Tensor:
            pixels = torch.stack([load_image(Path(file), self.task.cfg.img_size) for file in files])
            vectors: Tensor = self.model.embed_images(pixels.to(self._device))
            return vectors

        return torch.cat([of_batch(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """A vector for each text, (texts, width), like those of ``embed_images``; the feature of <s> takes the place of
        the class token's.

        Raises:
            ValueError: a text is too long.
        """

        def of_batch(lines: Sequence[str]) -> Tensor:
            tokens = collate_tokens([self.encode(line) for line in lines], self.task.source_dictionary.pad())
            vectors: Tensor = self.model.embed_texts(tokens.to(self._device))
            return vectors

        return torch.cat([of_batch(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)])

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, text: str) -> Tensor:
        """Tokens (words,), with <s> and </s>.

        Raises:
            InputError: there are more than the model has positions.
        """
        words, dictionary = self.encoder([text.encode()])[0], self.task.source_dictionary
        tokens = torch.tensor([dictionary.bos(), *words, dictionary.eos()])
        check_length(text, len(tokens), self.task.cfg.max_source_positions)
        return tokens

    @torch.no_grad()
    def match(self, image: str | Path, text: str) -> float:
        """The probability that a text belongs to an image."""
        scores: Tensor = self.model.match_head(self.extract_features(image, text)[:, 0])
        return float(scores.softmax(-1)[0, 1])


def masked_pieces(encode: Callable[[str], str], text: str) -> str:
    """The pieces of a text with one mask, which takes the space before it along.

    Args:
        encode: text to pieces with spaces between them. If it knows no masks, the texts before and after the mask are
            encoded by themselves.
        text: to encode.
    """
    whole = without_spaces_before_masks(encode(text))
    if MASK in whole.split():
        return whole
    before, after = (encode(part.rstrip()) for part in text.split(MASK))
    return f"{before} {MASK} {after}"


class _Words:
    """Stands for a tokenizer where text is split at spaces; a decoded word has the space in front, as in GPT-2's."""

    def encode(self, text: str) -> str:
        return text

    def decode(self, text: str) -> str:
        return f" {text}"


def _single(models: list[Any]) -> Any:
    if len(models) != 1:
        raise InputError(f"checkpoint_file names {len(models)} checkpoints; this kind of model is loaded from one.")
    return models[0]
