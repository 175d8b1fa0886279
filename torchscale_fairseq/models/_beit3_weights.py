"""BEiT-3's weights, released or of earlier runs, for a model of other images, words or heads."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.core.architectures.longvit import resized_positions
from torchscale_fairseq.core.config import BEiT3Config
from torchscale_fairseq.core.ops.positions import FIRST_POSITION

from ._options import Preset, core_config
from ._released import begin_from, read_released

logger = logging.getLogger(__name__)

BODIES = ("core.", "beit3.")
"""Beginnings of the encoder's names: in pretraining of this package, and in the released files."""
POSITIONS = "encoder.embed_positions."
FIRST_PATCH = FIRST_POSITION + 1
"""The row of the first patch, after that of the class token."""
OF_WORDS = ("text_embed.weight", f"{POSITIONS}B.weight")
"""Tables of the encoder with a row for each word, or for each place of one."""
NO_WORDS = 2
"""Rows of the table of words in models of images alone; that of padding is the second."""
SEPARATE = "encoder.layers.0.self_attn.q_proj.A.weight"
"""Only models with attention of its own for each modality have this tensor."""


def encoder_config(cfg: Any, preset: Preset, words: int) -> BEiT3Config:
    """The core's config for an architecture's part of fairseq's configuration.

    With --torchscale-compatible, the table of positions has the two rows more that no word uses, so that
    --max-source-positions counts words in either case.

    Args:
        cfg: of the model.
        preset: of the architecture.
        words: entries of the dictionary.

    Raises:
        OptionError: the options contradict each other.
    """
    config = core_config(cfg, BEiT3Config, preset, vocab_size=words)
    if not config.torchscale_compatible:
        return config
    return dataclasses.replace(config, max_source_positions=config.max_source_positions + FIRST_POSITION)


def load_weights(model: Any, path: str | Path, body: str) -> None:
    """Begin from a file of weights, and report which tensors are not used or not there.

    Args:
        model: with a BEiT3 under ``body``.
        path: of a released file, or of a checkpoint of this package.
        body: the beginning of the encoder's names, with a dot.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the encoder of the file has another architecture.
    """
    given = {_renamed(name, body): value for name, value in read_released(path, ("module.",)).items()}
    own = model.state_dict()
    if f"{body}text_embed.weight" in given and (body + SEPARATE in own) != (body + SEPARATE in given):
        both, remedy = ("separate", "add") if body + SEPARATE in given else ("shared", "leave out")
        raise CheckpointError(
            f"--pretrained {path} has {both} attention weights for images and texts, unlike this model; {remedy} "
            "--torchscale-compatible."
        )
    adapt(given, model, body)
    _check_words(given, own, path, body)
    begin_from(model, given, path, kind="a BEiT-3", advice="take the --arch and --patch-size of the file", body=body)


def _check_words(given: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path, body: str) -> None:
    """Raise CheckpointError if the model reads longer texts than the file has positions for."""
    table = f"{body}{POSITIONS}B.weight"
    if table in given and len(given[table]) < len(own[table]):
        words, wanted = (len(rows) - FIRST_POSITION for rows in (given[table], own[table]))
        raise CheckpointError(
            f"--pretrained {path} has positions for texts of {words} tokens, and --max-source-positions is {wanted}; "
            f"give --max-source-positions {words}."
        )


def adapt(state_dict: dict[str, Any], model: nn.Module, body: str) -> None:
    """Let weights for another img_size, longer texts or more words be loaded: positions of patches are interpolated,
    and rows that no word of this model uses are left out. A model of images alone keeps its own positions of words if
    the weights have fewer."""
    own = model.state_dict()
    patches, places = (f"{body}{POSITIONS}{part}.weight" for part in "AB")
    if patches in state_dict:
        state_dict[patches] = _resized(state_dict[patches], own[patches].size(0) - FIRST_PATCH)
    without_words = own[f"{body}text_embed.weight"].size(0) == NO_WORDS
    if without_words and places in state_dict and len(state_dict[places]) < len(own[places]):
        state_dict[places] = own[places]
    for name in (*(body + table for table in OF_WORDS), "mlm_head.weight", "mlm_head.bias"):
        if name in own and name in state_dict and state_dict[name].size(0) > own[name].size(0):
            logger.warning("%s: left out the rows after the first %s", name, f"{own[name].size(0):,}")
            state_dict[name] = state_dict[name][: own[name].size(0)]


def _renamed(name: str, body: str) -> str:
    for other in BODIES:
        if name.startswith(other):
            return body + name.removeprefix(other)
    return name


def _resized(table: Tensor, patches: int) -> Tensor:
    """The rows of patches for another number of them, in a square; those before stay."""
    side = round(patches**0.5)
    resized = resized_positions(table[FIRST_PATCH:].float().unsqueeze(0), side, side).squeeze(0)
    return torch.cat((table[:FIRST_PATCH], resized.to(table.dtype)))
