"""Repairs of stock fairseq's errors about directories of speech data, one function per failure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchscale_fairseq.core.errors import InputError

MAKER = "torchscale-fairseq data prepare-speech"


def name_missing_settings(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--task speech_to_text`` does not say where config.yaml and the dictionary come from."""

    def setup_task(cls: type, args: Any, **rest: Any) -> Any:
        try:
            return stock(cls, args, **rest)
        except FileNotFoundError as error:
            raise InputError(f"{error}; {MAKER} makes a directory that has this file.") from error

    return setup_task


def name_missing_manifest(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A split without a manifest is called a dataset that is not found, and a manifest that lacks a column ends with
    ``KeyError``."""

    def load_samples_from_tsv(cls: Any, root: str, split: str) -> list[dict[str, str]]:
        path = Path(root) / f"{split}.tsv"
        if not path.is_file():
            others = sorted(file.stem for file in Path(root).glob("*.tsv"))
            found = f"; the directory has {', '.join(others)}" if others else ""
            raise InputError(f"{path}, the manifest of the split {split}, does not exist{found}; {MAKER} makes it.")
        samples: list[dict[str, str]] = stock(cls, root, split)
        needed = (cls.KEY_ID, cls.KEY_AUDIO, cls.KEY_N_FRAMES, cls.KEY_TGT_TEXT)
        missing = [name for name in needed if name not in samples[0]]
        if missing:
            raise InputError(
                f"{path} has no column {' or '.join(missing)}, but {', '.join(samples[0])}; {MAKER} makes manifests of "
                "audio and texts."
            )
        return samples

    return load_samples_from_tsv


def name_features_of_another_width(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Features of another width than the YAML file says end in an error of a convolution."""

    def get_source_audio(self: Any, index: Any) -> torch.Tensor:
        source: torch.Tensor = stock(self, index)
        wanted = self.cfg.input_feat_per_channel * self.cfg.input_channels
        if not self.cfg.use_audio_input and source.size(1) != wanted:
            where = self.audio_paths[np.ravel(index)[0]]
            raise InputError(
                f"{where} has {source.size(1)} features per frame, and the data {wanted} (input_feat_per_channel in "
                f"its YAML file); set input_feat_per_channel: {source.size(1)} if all files have as many."
            )
        return source

    return get_source_audio
