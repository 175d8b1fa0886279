"""BEiT-3 with TorchScale's arguments (arXiv:2208.10442)."""

from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.encoder import Encoder
from ..component.embedding import PositionalEmbedding, TextEmbedding, VisionEmbedding
from ..component.multiway_network import MutliwayPositions


class BEiT3(nn.Module):
    """An encoder of images, texts and both.

    Args:
        args: an ``EncoderConfig`` with multiway, vocab_size and sizes of images.
        kwargs: ignored.
    """

    def __init__(self, args: Any, **kwargs: Any):
        super().__init__()
        self.args = args
        assert args.multiway, "BEiT3 needs multiway=True in its config."
        assert args.vocab_size > 0, "BEiT3 needs vocab_size in its config."
        assert not args.share_encoder_input_output_embed, "BEiT3 has no output layer to share."
        width = args.encoder_embed_dim
        self.text_embed = TextEmbedding(args.vocab_size, width)
        self.vision_embed = VisionEmbedding(
            args.img_size,
            args.patch_size,
            args.in_chans,
            width,
            contain_mask_token=True,
            prepend_cls_token=True,
        )
        positions = MutliwayPositions(
            [
                PositionalEmbedding(self.vision_embed.num_position_embeddings() + 2, width),
                PositionalEmbedding(args.max_source_positions, width),
            ],
            dim=1,
        )
        self.encoder = Encoder(
            args, embed_tokens=None, embed_positions=positions, output_projection=None, is_encoder_decoder=False
        )

    def forward(
        self,
        textual_tokens: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        text_padding_position: Tensor | None = None,
        attn_mask: Tensor | None = None,
        vision_masked_position: Tensor | None = None,
        incremental_state: Any = None,
        positions: Tensor | None = None,
    ) -> dict[str, Any]:
        """Image tokens before words.

        Args:
            textual_tokens: (batch, words), or None.
            visual_tokens: (batch, channels, height, width), or None.
            text_padding_position: (batch, words), True or 1 for padding.
            attn_mask: (seq, keys), anything but 0 where a query must not see a key.
            vision_masked_position: (batch, patches), True for masked patches.
            incremental_state: a dictionary per layer, by index.
            positions: (batch, seq), rows of the tables of positions.

        Returns:
            What ``Encoder`` returns, and multiway_split_position.
        """
        assert textual_tokens is not None or visual_tokens is not None, "give textual_tokens or visual_tokens."
        if textual_tokens is None:
            x, split, padding = self.vision_embed(visual_tokens, vision_masked_position), -1, None
        elif visual_tokens is None:
            x, split, padding = self.text_embed(textual_tokens), 0, text_padding_position
        else:
            image = self.vision_embed(visual_tokens, vision_masked_position)
            x, split, padding = torch.cat((image, self.text_embed(textual_tokens)), 1), image.size(1), None
            if text_padding_position is not None:
                padding = nn.functional.pad(text_padding_position.bool(), (split, 0), value=False)
        encoder_out: dict[str, Any] = self.encoder(
            src_tokens=None,
            encoder_padding_mask=None if padding is None else padding.bool(),
            attn_mask=attn_mask,
            token_embeddings=x,
            multiway_split_position=split,
            incremental_state=incremental_state,
            positions=positions,
        )
        return {**encoder_out, "multiway_split_position": split}
