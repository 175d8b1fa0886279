"""``--task instruction_tuning``: causal language models learn the answers of conversations. docs/fine_tuning.md
describes the data."""

import logging
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Optional

from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.instructions.chat import chat_of
from torchscale_fairseq.data.instructions.conversations import conversation_files, read_conversations
from torchscale_fairseq.data.instructions.dataset import InstructionDataset
from torchscale_fairseq.data.instructions.encoding import ConversationEncoder
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.formats.locations import joined
from torchscale_fairseq.data.text.pieces import TextEncoder
from torchscale_fairseq.data.text.tokenizers import dictionary_in, tokenizer_of
from torchscale_fairseq.models._packing import check_packing
from torchscale_fairseq.tasks._dictionary import OneDictionary

logger = logging.getLogger(__name__)

ANSWERS_COMMAND = "torchscale-fairseq answer"


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class InstructionTuningConfig(FairseqDataclass):
    """Options of the task."""

    data: str = field(
        default=MISSING,
        metadata=_help(
            "directory with train.jsonl (also .gz and .zst), train.parquet, or a folder train that datasets saved, "
            "valid likewise, the tokenizer and dict.txt"
        ),
    )
    chat_template: str = field(
        default="",
        metadata=_help(
            "file with a chat template, tokenizer_config.json or Jinja; plain: none (default: that of the data "
            "directory, if it has one)"
        ),
    )
    tokens_per_sample: int = field(default=1024, metadata=_help("maximum length of a conversation in tokens"))
    max_target_positions: Optional[int] = field(  # noqa: UP045 (fairseq reads the annotation)
        default=None,
        metadata=_help("maximum length of the model's input in tokens (default: --tokens-per-sample)"),
    )
    tokenizer_file: str = field(
        default="",
        metadata=_help(
            "SentencePiece model, tokenizer.json of a fast tokenizer, or tiktoken file (default: "
            "sentencepiece.bpe.model, tokenizer.json or *.tiktoken in the data directory)"
        ),
    )
    dict_file: str = field(
        default="",
        metadata=_help("dictionary file (default: dict.txt in the data directory; without it, the tokenizer's pieces)"),
    )
    pack_documents: bool = field(
        default=False,
        metadata=_help(
            "the conversations of a batch are one row without padding; they do not see each other, and positions begin "
            "anew in each, as if each were alone"
        ),
    )
    skip_invalid: bool = field(
        default=False, metadata=_help("count and report invalid lines and rows instead of ending with an error")
    )
    train_subset: str = II("dataset.train_subset")
    sentence_avg: bool = II("optimization.sentence_avg")


@register_task("instruction_tuning", dataclass=InstructionTuningConfig)
class InstructionTuningTask(OneDictionary):
    """Reads conversations, and makes batches for cross_entropy and the criterions on top of it.

    Args:
        cfg: the options.
        dictionary: of the model.
    """

    cfg: InstructionTuningConfig

    def __init__(self, cfg: InstructionTuningConfig, dictionary: Any):
        super().__init__(cfg)
        self.dictionary = dictionary

    @classmethod
    def setup_task(cls, cfg: InstructionTuningConfig, **_: Any) -> "InstructionTuningTask":
        """Make the task with its dictionary.

        Raises:
            DataError: the dictionary is missing or broken.
        """
        dictionary = dictionary_in(cls._folder(cfg), cfg.dict_file, cfg.tokenizer_file)
        logger.info("dictionary: %s types", f"{len(dictionary):,}")
        return cls(cfg, dictionary)

    @staticmethod
    def _folder(cfg: InstructionTuningConfig) -> str:
        return str(utils.split_paths(cfg.data)[0])

    def encoder(self, problems: Problems) -> TextEncoder:
        """Text to the numbers of the dictionary."""
        folder = self._folder(self.cfg)
        pieces = tokenizer_of(folder, self.cfg.tokenizer_file)
        return TextEncoder(pieces, self.dictionary, self.cfg.dict_file or joined(folder, "dict.txt"), problems)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model.

        Raises:
            InputError: it cannot separate conversations, or the loss is averaged over rows, with --pack-documents.
        """
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.pack_documents:
            check_packing(cfg._name, model)
            if self.cfg.sentence_avg:
                raise InputError(
                    "--pack-documents makes one row of a batch's conversations, over which --sentence-avg cannot "
                    "average; drop one of the two."
                )
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **_: Any) -> None:
        """Read a split and tokenize it.

        Args:
            split: such as "train", for train.jsonl, train.parquet, files in the folder train and so on.
            epoch, combine: unused.

        Raises:
            DataError: something is wrong with the data.
            ModuleNotFoundError: a package for a format of the data is missing.
        """
        folder, problems = self._folder(self.cfg), Problems(skip=self.cfg.skip_invalid)
        files, chat = conversation_files(folder, split), chat_of(self.cfg.chat_template, Path(folder))
        encode = ConversationEncoder(self.encoder(problems), chat, self.dictionary.eos())
        conversations = chain.from_iterable(read_conversations(file, problems) for file in files)
        examples = [encode(chat.segments(messages)) for messages in conversations]
        what = files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}"
        problems.report(what)
        if not examples:
            raise DataError(f"{what}: no conversation.")
        self.datasets[split] = InstructionDataset(
            examples, self.dictionary, shuffle=split == self.cfg.train_subset, packed=self.cfg.pack_documents
        )
        learned = sum(int(example.learned.sum()) for example in examples)
        tokens = sum(len(example.tokens) for example in examples)
        logger.info(
            "%s: %s conversations, %s tokens, %s of answers",
            what,
            *(f"{n:,}" for n in (len(examples), tokens, learned)),
        )

    def build_dataset_for_inference(self, *_: Any, **__: Any) -> Any:
        """Refuse fairseq-interactive.

        Raises:
            InputError: always.
        """
        raise InputError(f"--task instruction_tuning does not serve fairseq-interactive; {ANSWERS_COMMAND} answers.")

    def eval_lm_dataloader(self, *_: Any, **__: Any) -> Any:
        """Refuse fairseq-eval-lm.

        Raises:
            InputError: always.
        """
        raise InputError(
            "--task instruction_tuning does not serve fairseq-eval-lm; fairseq-validate measures the loss."
        )

    def max_positions(self) -> int:
        """Longest conversation in tokens."""
        return self.cfg.tokens_per_sample
