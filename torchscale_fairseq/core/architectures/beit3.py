"""BEiT-3: one encoder for images, texts and pairs of both.

"Image as a Foreign Language", arXiv:2208.10442, sec. 2.1: attention is shared, each modality has feed-forward networks
of its own (multiway). Image tokens come first.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..config import BEiT3Config
from ..errors import InputError
from ..layers.embedding import PositionalEmbedding, TextEmbedding
from ..layers.multiway import ALL_A, Multiway
from ..layers.vision_embedding import VisionEmbedding
from ..ops.masks import as_mask, is_traced
from ..ops.positions import FIRST_POSITION, PADDING_POSITION, absolute_positions
from .encoder import Encoder


class BEiT3(nn.Module):
    """Embeddings of patches and words in front of a multiway ``Encoder``.

    Args:
        config: the options.

    Raises:
        ValueError: the config has no vocabulary.
    """

    def __init__(self, config: BEiT3Config):
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size ({config.vocab_size}) must be positive: BEiT3 reads words too.")
        self.config = config
        width, official = config.encoder_embed_dim, config.torchscale_compatible
        self.text_embed = TextEmbedding(config.vocab_size, width, None if official else PADDING_POSITION)
        self.vision_embed = VisionEmbedding(
            config.patch_size, config.in_chans, width, mask_token=True, class_token=True
        )
        # TorchScale's table of words has no rows beyond max_source_positions, two of which no word uses.
        words = config.max_source_positions + (0 if official else FIRST_POSITION)
        self.max_words = words - FIRST_POSITION
        tables = (config.num_patches + 1 + FIRST_POSITION, words)
        positions = Multiway(*(lambda rows=rows: PositionalEmbedding(rows, width) for rows in tables))
        self.encoder = Encoder(dataclasses.replace(config, vocab_size=-1), embed_positions=positions)
        for token in (self.vision_embed.cls_token, self.vision_embed.mask_token):
            assert token is not None
            if not official:  # where they are zero
                nn.init.normal_(token, std=width**-0.5)

    def forward(
        self,
        textual_tokens: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        text_padding_position: Tensor | None = None,
        attn_mask: Tensor | None = None,
        vision_masked_position: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> dict[str, Any]:
        """Encode texts, images, or pairs.

        Args:
            textual_tokens: (batch, words), or None.
            visual_tokens: (batch, channels, img_size, img_size), or None.
            text_padding_position: (batch, words), True or 1 for padding; no floats.
            attn_mask: (seq, seq), True, 1 or -inf (anything but 0) where a query must not see a key.
            vision_masked_position: (batch, patches), True or 1 for masked patches; no floats.
            return_all_hiddens: fill encoder_states.

        Returns:
            What ``Encoder`` returns, of the class token, the patches and the words in this order; and
            multiway_split_position, the image tokens among them (-1: all).

        Raises:
            InputError: a mask holds floats, or a text is longer than max_source_positions.
            ValueError: there is no input, or an image has another size.
        """
        parts, rows, padding = [], [], []
        if visual_tokens is not None:
            image = self._image(visual_tokens, as_mask(vision_masked_position, "vision_masked_position"))
            parts.append(image)
            padding.append(image.new_zeros(image.shape[:2], dtype=torch.bool))
            rows.append(torch.arange(image.size(1), device=image.device).expand(image.shape[:2]) + FIRST_POSITION)
        if textual_tokens is not None:
            text_padding_position = as_mask(text_padding_position, "text_padding_position")
            if text_padding_position is None:
                text_padding_position = torch.zeros_like(textual_tokens, dtype=torch.bool)
            parts.append(self.text_embed(textual_tokens))
            padding.append(text_padding_position)
            rows.append(self._rows_of_words(text_padding_position))
        if not parts:
            raise ValueError("BEiT3 needs textual_tokens, visual_tokens or both.")
        split = ALL_A if textual_tokens is None else 0 if visual_tokens is None else parts[0].size(1)
        output = self.encoder(
            None,
            encoder_padding_mask=torch.cat(padding, 1),
            attn_mask=attn_mask,
            token_embeddings=torch.cat(parts, 1),
            multiway_split_position=split,
            positions=torch.cat(rows, 1),
            return_all_hiddens=return_all_hiddens,
        )
        return {**output, "multiway_split_position": split}

    def _image(self, images: Tensor, masked: Tensor | None) -> Tensor:
        size = self.config.img_size
        if images.shape[-2:] != (size, size):
            height, width = images.shape[-2:]
            raise ValueError(f"images are of {height} x {width} pixels and must be of img_size ({size}) x {size}.")
        return self.vision_embed(images, masked)

    def _rows_of_words(self, padding: Tensor) -> Tensor:
        rows = absolute_positions(torch.zeros_like(padding) if self.config.torchscale_compatible else padding)
        words = 0 if is_traced() else int(rows.max()) - FIRST_POSITION + 1
        if words > self.max_words:
            raise InputError(
                f"a text of {words} tokens is longer than max_source_positions "
                f"({self.config.max_source_positions}) allows; shorten the text, or build and train a model with more."
            )
        return rows
