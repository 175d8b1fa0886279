"""The interface that ``from_pretrained`` returns for speech models."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.utils import apply_to_sample, resolve_max_positions
from omegaconf import open_dict
from torch import nn


class SpeechHub(nn.Module):
    """Models of --task speech_to_text that read audio files.

    Args:
        cfg: of the checkpoint.
        task: with its dictionary; its data configuration names the tokenizer.
        models: one, or an ensemble.
    """

    def __init__(self, cfg: Any, task: Any, models: Sequence[Any]):
        super().__init__()
        self.cfg = cfg
        self.task = task
        self.models: Any = nn.ModuleList(models)
        for model in models:
            model.prepare_for_inference_(cfg)
        self.tokenizer = task.build_tokenizer(cfg.tokenizer)
        self.bpe = task.build_bpe(cfg.bpe)
        self.eval()

    @torch.no_grad()
    def transcribe(self, audio: str | Path | Sequence[str | Path], beam: int = 5, **options: Any) -> Any:
        """The texts that beam search finds for audio files, which are decoded one at a time.

        Args:
            audio: a file, or several.
            beam: hypotheses of beam search.
            options: others of fairseq-generate, by name.

        Returns:
            The text of a file; a list of texts for several files.

        Raises:
            InputError: a file cannot be read as audio.
        """
        if isinstance(audio, (str, Path)):
            return self.transcribe([audio], beam, **options)[0]
        generation = copy.deepcopy(self.cfg.generation)
        with open_dict(generation):
            generation.update(beam=beam, **options)
        generator = self.task.build_generator(list(self.models), generation)
        found = [self.task.inference_step(generator, list(self.models), batch)[0] for batch in self._batches(audio)]
        return [self.decode(hypotheses[0]["tokens"]) for hypotheses in found]

    def decode(self, tokens: torch.Tensor) -> str:
        """The text of tokens (words,)."""
        text: str = self.task.target_dictionary.string(tokens)
        for encoder in (self.bpe, self.tokenizer):
            text = text if encoder is None else encoder.decode(text)
        return text

    def _batches(self, files: Sequence[str | Path]) -> Iterable[Any]:
        """A batch per file, in the order of the files."""
        device = next(self.parameters()).device
        limits = resolve_max_positions(self.task.max_positions(), *(model.max_positions() for model in self.models))
        for file in files:
            paths, lengths = self.task.get_interactive_tokens_and_lengths([str(file)], None)
            dataset = self.task.build_dataset_for_inference(paths, lengths)
            batches = self.task.get_batch_iterator(dataset, max_sentences=1, max_positions=limits)
            for batch in batches.next_epoch_itr(shuffle=False):
                yield apply_to_sample(lambda value: value.to(device), batch)
