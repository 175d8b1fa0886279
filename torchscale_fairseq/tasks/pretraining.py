"""``--task pretraining``: masked and causal language models on sharded text, tokenized as it is read.

The flags are TorchScale's, as far as they have an effect there; ``--objective``, ``--skip-invalid`` and
``--index-dir`` are ours. docs/pretraining.md describes the data.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY, FairseqEncoderModel, FairseqLanguageModel
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.batch_iterator import PretrainingIterator
from torchscale_fairseq.data.text.blocks import BREAK_MODES
from torchscale_fairseq.data.text.corpus import Corpus
from torchscale_fairseq.data.text.dictionary_origin import DictionaryOrigin
from torchscale_fairseq.data.text.formats.locations import joined
from torchscale_fairseq.data.text.masking import Masking
from torchscale_fairseq.data.text.order import SampleOrder
from torchscale_fairseq.data.text.pieces import MASK, TextEncoder
from torchscale_fairseq.data.text.pretraining_dataset import PretrainingDataset
from torchscale_fairseq.data.text.tokenizers import dictionary_in, tokenizer_of
from torchscale_fairseq.models._packing import check_packing
from torchscale_fairseq.tasks._continuing import ContinuesTexts
from torchscale_fairseq.tasks._dictionary import OneDictionary

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 4
_SEVERAL_DOCUMENTS = ("none", "complete")
"""Values of --sample-break-mode whose samples hold several documents."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class PretrainingConfig(FairseqDataclass):
    """Options of the task."""

    data: str = field(
        default=MISSING,
        metadata=_help(
            "directory of the text, the tokenizer and dict.txt, or its URL; several directories, separated by colons "
            "(URLs: by |), take turns by epoch"
        ),
    )
    objective: Optional[ChoiceEnum(["masked", "causal"])] = field(  # type: ignore[valid-type]  # noqa: UP045
        default=None,
        metadata=_help(
            "masked: predict masked tokens (bert_...); causal: predict the next token (gpt_..., "
            "retnet_...) (default: that of the architecture)"
        ),
    )
    sample_break_mode: ChoiceEnum(list(BREAK_MODES)) = field(  # type: ignore[valid-type]
        default="complete",
        metadata=_help(
            "content of a sample. complete: as many whole lines as fit; complete_doc: as many whole lines "
            "of one document as fit; none: exactly --tokens-per-sample tokens, cutting lines; eos: one "
            "line"
        ),
    )
    tokens_per_sample: int = field(default=1024, metadata=_help("maximum length of a sample in tokens, <s> included"))
    mask_prob: float = field(default=0.15, metadata=_help("fraction of the tokens to predict"))
    span_length: float = field(
        default=1.0, metadata=_help("mean length of masked spans in tokens; 1 masks single tokens, as BERT does")
    )
    leave_unmasked_prob: float = field(
        default=0.1, metadata=_help("fraction of the tokens to predict that stay as they are")
    )
    random_token_prob: float = field(
        default=0.1,
        metadata=_help("fraction of the tokens to predict that are replaced by a random token instead of <mask>"),
    )
    batch_read_ahead: int = field(default=100000, metadata=_help("number of samples that are shuffled together"))
    pack_documents: bool = field(
        default=False,
        metadata=_help(
            "documents in a sample do not see each other, and positions begin anew in each, as if each document were "
            "alone; an empty line ends a document"
        ),
    )
    pad_to_max_length: bool = field(default=False, metadata=_help("pad every sample to --tokens-per-sample"))
    text_field: str = field(
        default="text", metadata=_help("field of JSON lines, or column of Parquet and Arrow files, that holds the text")
    )
    tokenizer_file: str = field(
        default="",
        metadata=_help(
            "SentencePiece model, tokenizer.json of a fast tokenizer, or tiktoken file (default: "
            "sentencepiece.bpe.model, tokenizer.json or *.tiktoken in the data directory)"
        ),
    )
    spm_model: str = field(default="", metadata=_help("TorchScale's name of --tokenizer-file"))
    dict_file: str = field(
        default="",
        metadata=_help("dictionary file (default: dict.txt in the data directory; without it, the tokenizer's pieces)"),
    )
    index_dir: str = field(
        default="", metadata=_help("directory of the shards' index (default: index/ in the data directory)")
    )
    skip_invalid: bool = field(
        default=False,
        metadata=_help(
            "count and report invalid lines, missing shards and empty sources instead of ending with an error"
        ),
    )
    max_target_positions: Optional[int] = field(  # noqa: UP045 (fairseq reads the annotation)
        default=None,
        metadata=_help("maximum length of a causal model's input in tokens (default: --tokens-per-sample)"),
    )
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")
    num_workers: int = II("dataset.num_workers")
    update_freq: Any = II("optimization.update_freq")  # noqa: RUF009 (a string that Hydra resolves)


@register_task("pretraining", dataclass=PretrainingConfig)
class PretrainingTask(OneDictionary, ContinuesTexts):
    """Reads shards of text, and makes batches for the criterions masked_lm and cross_entropy and those on top of them.

    Args:
        cfg: the options.
        dictionary: the numbering of fairseq's own tasks, so that these take the models: masked_lm's and
            sentence_prediction's, which ends with <mask>, or language_modeling's.

    Raises:
        InputError: an option is out of its range.
    """

    cfg: PretrainingConfig

    def __init__(self, cfg: PretrainingConfig, dictionary: Any):
        super().__init__(cfg)
        self.dictionary = dictionary
        self.origin = DictionaryOrigin.of(dictionary, str(cfg.dict_file or _tokenizer_file(cfg) or cfg.data))
        self.masking: Masking | None = None
        if cfg.tokens_per_sample < FEWEST_TOKENS:
            raise InputError(f"--tokens-per-sample ({cfg.tokens_per_sample}) must be at least {FEWEST_TOKENS}.")
        if cfg.batch_read_ahead < 0:
            raise InputError(f"--batch-read-ahead ({cfg.batch_read_ahead}) must not be negative; 0 does not shuffle.")
        if cfg.pack_documents and str(cfg.sample_break_mode) not in _SEVERAL_DOCUMENTS:
            raise InputError(
                f"--pack-documents has no use with --sample-break-mode {cfg.sample_break_mode}, whose samples hold one "
                f"document; give --sample-break-mode {' or '.join(_SEVERAL_DOCUMENTS)}, or drop --pack-documents."
            )
        self.objective: str | None = None
        if cfg.objective is not None:
            self._set_objective(str(cfg.objective))

    @classmethod
    def setup_task(cls, cfg: PretrainingConfig, **_: Any) -> "PretrainingTask":
        """Make the task with its dictionary.

        Raises:
            DataError: the dictionary is missing or broken.
            InputError: --tokenizer-file and --spm-model are both given.
        """
        return cls(cfg, dictionary_in(utils.split_paths(cfg.data)[0], cfg.dict_file, _tokenizer_file(cfg)))

    def _set_objective(self, objective: str) -> None:
        """Decide between masked and causal, before which the dictionary has no <mask>."""
        self.objective = objective
        if objective == "masked":
            self.dictionary.add_symbol(MASK)
            self.masking = self._masking()
        logger.info("dictionary: %s types; objective: %s", f"{len(self.dictionary):,}", objective)

    def _masking(self) -> Masking:
        cfg = self.cfg
        return Masking.over(
            self.dictionary,
            mask_prob=cfg.mask_prob,
            span_length=cfg.span_length,
            leave_unmasked_prob=cfg.leave_unmasked_prob,
            random_token_prob=cfg.random_token_prob,
        )

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model, which decides the objective unless --objective is given.

        Raises:
            InputError: a causal model with the masked objective, or the other way round; or a model that cannot
                separate documents with --pack-documents.
        """
        implied = _objective_of(cfg._name)
        if self.objective is None:
            self._set_objective(implied or "masked")
        if implied not in (None, self.objective):
            raise InputError(
                f"--objective {self.objective} does not fit --arch {cfg._name}, a {implied} language model; leave it "
                "out, or give another architecture."
            )
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.pack_documents:
            check_packing(cfg._name, model)
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **_: Any) -> None:
        """Open a split, making the indices of shards that have none.

        Args:
            split: such as "train", for json/train.json.
            epoch: picks the directory, where --data names several.
            combine: unused.

        Raises:
            DataError: something is wrong with the data.
        """
        if self.objective is None:
            self._set_objective("masked")
        cfg = self.cfg
        directories = utils.split_paths(cfg.data)
        data = directories[(epoch - 1) % len(directories)]
        problems = Problems(skip=cfg.skip_invalid)
        pieces = tokenizer_of(data, _tokenizer_file(cfg))
        encoder = TextEncoder(pieces, self.dictionary, cfg.dict_file or joined(data, "dict.txt"), problems)
        corpus = Corpus(
            data,
            split,
            pieces,
            capacity=cfg.tokens_per_sample - (self.masking is not None),
            break_mode=str(cfg.sample_break_mode),
            problems=problems,
            index_dir=Path(cfg.index_dir) if cfg.index_dir else None,
            workers=cfg.num_workers,
            share=(distributed_utils.get_data_parallel_rank(), distributed_utils.get_data_parallel_world_size()),
            room_for_bos=cfg.pack_documents and self.masking is not None,
            text_field=cfg.text_field,
        )
        training = split == cfg.train_subset
        order = SampleOrder(
            corpus.samples,
            corpus.weights if training else None,
            read_ahead=cfg.batch_read_ahead,
            seed=cfg.seed if training else None,
        )
        pad_to = cfg.tokens_per_sample if cfg.pad_to_max_length else 0
        self.datasets[split] = PretrainingDataset(
            *(corpus, order, encoder, self.dictionary),
            masking=self.masking,
            seed=cfg.seed,
            pad_to=pad_to,
            packed=cfg.pack_documents,
        )
        logger.info(
            "%s: %s samples in %s shards, %s samples in an epoch",
            *(corpus.name, f"{len(corpus):,}", f"{len(corpus.shards):,}", f"{len(order):,}"),
        )

    def batches_of_split(
        self,
        dataset: PretrainingDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        max_positions: Any = None,
        required_batch_size_multiple: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        skip_remainder_batch: bool = False,
        **_: Any,
    ) -> PretrainingIterator:
        """The batches of a split, for one process; arguments as in fairseq.

        Raises:
            InputError: the model or --max-tokens has no room for a sample.
        """
        length = self.cfg.tokens_per_sample
        if isinstance(max_positions, int) and max_positions < length and not (max_tokens and max_tokens < length):
            raise InputError(
                f"--tokens-per-sample ({length}) is longer than the model's {max_positions} positions; lower it, or "
                "raise --max-source-positions (masked models) or --max-target-positions (causal ones)."
            )
        update_freq = self.cfg.update_freq or [1]
        return PretrainingIterator(
            dataset,
            batch_size=samples_per_batch(max_tokens, max_sentences, length, required_batch_size_multiple),
            num_shards=num_shards,
            shard_id=shard_id,
            epoch=epoch,
            directories=len(utils.split_paths(self.cfg.data)),
            update_freq=update_freq[min(epoch, len(update_freq)) - 1],
            num_workers=num_workers,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
        )

    def eval_lm_dataloader(
        self,
        dataset: PretrainingDataset,
        max_tokens: int | None = 36000,
        batch_size: int | None = None,
        context_window: int = 0,
        **arguments: Any,
    ) -> Any:
        """The batches that fairseq-eval-lm scores.

        Raises:
            InputError: --context-window is set.
        """
        if context_window > 0:
            raise InputError(
                f"--context-window ({context_window}) is not there for --task pretraining; leave it out, or binarise "
                "the text and use --task language_modeling."
            )
        return self.get_batch_iterator(
            dataset, max_tokens=None if batch_size else max_tokens, max_sentences=batch_size, **arguments
        ).next_epoch_itr()

    def state_dict(self) -> dict[str, Any]:
        """The entries of checkpoints that say which dictionary a model was trained with."""
        return {**super().state_dict(), **self.origin.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with a checkpoint that is evaluated.

        Raises:
            InputError: it was trained with another dictionary.
        """
        self.origin.check(state_dict)

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool, keep_optimizer: bool) -> None:
        """Compare with a checkpoint before a run begins from it.

        Raises:
            InputError: it was trained with another dictionary.
        """
        self.origin.check(state.get("task_state") or {})

    def max_positions(self) -> int:
        """Longest sample in tokens."""
        return self.cfg.tokens_per_sample


def _tokenizer_file(cfg: PretrainingConfig) -> str:
    """The tokenizer that the options name; empty if they name none.

    Raises:
        InputError: they name two.
    """
    if cfg.tokenizer_file and cfg.spm_model and cfg.tokenizer_file != cfg.spm_model:
        raise InputError(
            f"--tokenizer-file ({cfg.tokenizer_file}) and --spm-model ({cfg.spm_model}) name two tokenizers; leave "
            "--spm-model out."
        )
    return cfg.tokenizer_file or cfg.spm_model


def _objective_of(arch: str) -> str | None:
    """The objective that an architecture of fairseq's registry can be trained with; None if its class tells none."""
    model = ARCH_MODEL_REGISTRY.get(arch) or MODEL_REGISTRY.get(arch) or object
    kinds = (("causal", FairseqLanguageModel), ("masked", FairseqEncoderModel))
    return next((objective for objective, kind in kinds if issubclass(model, kind)), None)


def samples_per_batch(max_tokens: int | None, max_sentences: int | None, length: int, multiple: int) -> int:
    """The size of batches.

    Args:
        max_tokens, max_sentences: --max-tokens and --batch-size, of which both hold.
        length: tokens of a sample.
        multiple: --required-batch-size-multiple, to which what --max-tokens allows is rounded down.

    Raises:
        InputError: neither is given, or --max-tokens is less than a sample.
    """
    if max_sentences is None and max_tokens is None:
        raise InputError("--task pretraining needs --batch-size or --max-tokens.")
    if max_tokens is None:
        return int(max_sentences or 1)
    fitting = max_tokens // length
    if fitting < 1:
        raise InputError(f"--max-tokens ({max_tokens}) is less than a sample, --tokens-per-sample ({length}).")
    size = fitting // multiple * multiple or fitting
    return size if max_sentences is None else min(size, max_sentences)
