"""BEiT-3 that writes captions: masked words are predicted from the image and the words before them.

"Image as a Foreign Language", arXiv:2208.10442, sec. 3.1. In training, a share of a caption's words is masked. In
generation, a mask stands after the words so far, and is replaced by the word that is predicted there.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..config import BEiT3Config
from ..layers.multiway import ALL_A
from ..ops.positions import FIRST_POSITION
from .beit3_jobs import BEiT3Job, initialize_head

State = list[dict[str, Any]]
"""Keys and values of the tokens read so far, a dictionary per layer."""


class BEiT3ForCaptioning(BEiT3Job):
    """A score for each word of the vocabulary.

    Args:
        config: of the encoder.
    """

    def __init__(self, config: BEiT3Config):
        super().__init__(config)
        self.mlm_head = nn.Linear(config.encoder_embed_dim, config.vocab_size)
        initialize_head(self.mlm_head)

    def forward(
        self, images: Tensor, tokens: Tensor, padding: Tensor | None = None, wanted: Tensor | None = None
    ) -> Tensor:
        """Scores of words where they are wanted.

        Args:
            images: (batch, channels, img_size, img_size).
            tokens: (batch, words), with masks among them.
            padding: (batch, words), True for padding.
            wanted: (batch, words), True where a word is predicted; None for everywhere.

        Returns:
            (wanted, vocabulary), or (batch, words, vocabulary).
        """
        image_tokens = self.beit3.config.num_patches + 1
        hidden = prefix_mask(image_tokens, tokens.size(1), tokens.device)
        x = self.beit3(tokens, images, padding, attn_mask=hidden)["encoder_out"][:, image_tokens:]
        scores: Tensor = self.mlm_head(x if wanted is None else x[wanted])
        return scores

    def read_images(self, images: Tensor) -> State:
        """The state of captions that have no word yet. Images see no words, so they are read once.

        Args:
            images: (batch, channels, img_size, img_size).
        """
        state: State = [{} for _ in range(self.beit3.config.encoder_layers)]
        self._read(state, self.beit3.vision_embed(images), ALL_A, 0)
        return state

    def next_word(self, state: State, tokens: Tensor, place: int, mask: int) -> Tensor:
        """Scores (batch, vocabulary) of the word after the newest one, which is added to the state.

        Args:
            state: of the image and the words before the newest one.
            tokens: (batch,), the newest words.
            place: how many words there are before them.
            mask: the number of <mask>.
        """
        pair = torch.stack((tokens, torch.full_like(tokens, mask)), 1)
        seen = state[0]["self_attn"].length
        hidden = torch.zeros(2, seen + 2, dtype=torch.bool, device=tokens.device)
        hidden[0, -1] = True  # the word does not see the mask after it
        x = self._read(state, self.beit3.text_embed(pair), 0, place, hidden)
        for layer in state:
            layer["self_attn"].drop(1)
        scores: Tensor = self.mlm_head(x[:, 1])
        return scores

    def _read(self, state: State, x: Tensor, split: int, start: int, hidden: Tensor | None = None) -> Tensor:
        rows = torch.arange(start, start + x.size(1), device=x.device).expand(x.shape[:2]) + FIRST_POSITION
        output: Tensor = self.beit3.encoder(
            None,
            attn_mask=hidden,
            token_embeddings=x,
            multiway_split_position=split,
            incremental_state=state,
            positions=rows,
        )["encoder_out"]
        return output


def prefix_mask(prefix: int, words: int, device: torch.device | None = None) -> Tensor:
    """Where a token must not see another: the prefix sees itself, words see the prefix and the words up to themselves.

    Returns:
        (prefix + words, prefix + words), True where a query must not see a key.
    """
    total = prefix + words
    hidden = torch.ones(total, total, dtype=torch.bool, device=device).triu(1)
    hidden[:prefix, :prefix] = False
    return hidden


def reorder(state: State, rows: Tensor) -> None:
    """Keep the given rows of a state, in the given order."""
    for layer in state:
        layer["self_attn"].select(rows)
