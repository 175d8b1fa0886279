"""Answers of a language model, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.instructions.chat import chat_of
from torchscale_fairseq.data.instructions.conversations import ANSWERS, Message
from torchscale_fairseq.data.instructions.encoding import ConversationEncoder
from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.tokenizers import tokenizer_of_training


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen.

    Raises:
        InputError: a value is out of its range.
    """

    max_tokens: int
    """Longest answer."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the likeliest."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest ones that have this probability together."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"--temperature ({self.temperature}) must be at least 0.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p ({self.top_p}) must be above 0 and at most 1.")

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """A token from (vocabulary,) logits."""
        if self.temperature == 0:
            return int(logits.argmax())
        probabilities, tokens = (logits.float() / self.temperature).softmax(-1).sort(descending=True)
        probabilities[probabilities.cumsum(-1) - probabilities >= self.top_p] = 0.0
        return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


class Answerer:
    """A model with what it needs to read prompts.

    Args:
        checkpoint: of a causal language model, best one that --task instruction_tuning trained.
        data: the directory with its dictionary, tokenizer and chat template.
        sampling: how tokens are chosen.
        tokenizer_file: the tokenizer; None for that of the training, or else the one in the directory.

    Raises:
        InputError: the model is not causal, or the data does not fit it.
    """

    def __init__(self, checkpoint: Path, data: Path, sampling: Sampling, tokenizer_file: str | None = None):
        from torchscale_fairseq import plugin

        plugin.register()
        from fairseq import checkpoint_utils
        from fairseq.models import FairseqLanguageModel

        from torchscale_fairseq.tasks.instruction_tuning import InstructionTuningConfig, InstructionTuningTask

        overrides = {"data": str(data)}
        models, config, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], arg_overrides=overrides)
        if not isinstance(models[0], FairseqLanguageModel):
            raise InputError(
                f"{checkpoint} was trained with --task {config.task._name}; a causal language model answers"
            )
        template = getattr(config.task, "chat_template", "")
        tokenizer = tokenizer_of_training(config.task, str(data), tokenizer_file)
        dictionary = getattr(config.task, "dict_file", None) or ""
        task = InstructionTuningTask.setup_task(
            InstructionTuningConfig(
                data=str(data), chat_template=template, tokenizer_file=tokenizer.path, dict_file=dictionary
            )
        )
        self.model: Any = models[0].eval()
        self.sampling, self._generator = sampling, torch.Generator().manual_seed(sampling.seed)
        self._chat, self._end = chat_of(template, data), task.dictionary.eos()
        encoder = task.encoder(Problems(skip=False))
        self._encode, self._pieces = ConversationEncoder(encoder, self._chat, self._end), encoder.pieces
        known = enumerate(self._pieces.pieces())
        self._numbers = {task.dictionary.index(piece): number for number, piece in known if piece is not None}

    def answer(self, messages: Sequence[Message]) -> str:
        """The model's answer to a conversation.

        Raises:
            InputError: the conversation ends with an answer, or leaves no room for one.
        """
        if messages[-1]["role"] == ANSWERS:
            raise InputError("the conversation ends with an answer already; leave it out.")
        prompt = [self._end, *self._encode(self._chat.prompt(messages)).tokens.tolist()]
        room = min(self.sampling.max_tokens, self.model.max_positions() - len(prompt))
        if room < 1:
            raise InputError(
                f"the conversation has {len(prompt)} tokens, and the model reads {self.model.max_positions()}; shorten "
                "it."
            )
        found = self._continued(prompt, room)
        pieces = [self._numbers.get(token, self._pieces.unknown()) for token in found]
        return self._pieces.decode([pieces])[0]

    @torch.no_grad()
    def _continued(self, prompt: list[int], room: int) -> list[int]:
        """The tokens after a prompt, up to </s>."""
        state: dict[Any, Any] = {}
        tokens, count = torch.tensor([prompt]), len(prompt)
        while tokens.size(1) < count + room:
            logits = self.model.decoder(tokens, incremental_state=state)[0][0, -1]
            token = self.sampling.choose(logits, self._generator)
            if token == self._end:
                break
            tokens = torch.cat((tokens, torch.tensor([[token]])), 1)
        return tokens[0, count:].tolist()
