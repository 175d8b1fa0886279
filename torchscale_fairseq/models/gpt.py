"""Language models: ``gpt_deepnorm``, ``gpt_magneto``, ``gpt_xpos`` and their sizes, and TorchScale's ``lm_base``."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.models import FairseqLanguageModel
from torch import Tensor

from torchscale_fairseq.core.config import DecoderConfig
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.documents import starts_after_empty_lines

from ._decoder import TextDecoder
from ._dictionary import token_embedding
from ._dropout import RetainsDropout
from ._fits import LANGUAGE as FITTING_TASKS
from ._options import ModelOptions, Preset, core_config, of_task
from ._packing import check_packing
from ._presets import LANGUAGE
from ._pretrained import Pretrained
from ._registration import register_presets

FROM_TASK = ("max_target_positions",)


@dataclass
class LanguageModelOptions(ModelOptions):
    """Options of fairseq's side alone."""

    tokens_per_sample: Optional[int] = field(default=of_task("tokens_per_sample"))  # noqa: UP045
    add_bos_token: Optional[bool] = field(default=of_task("add_bos_token"))  # noqa: UP045
    pack_documents: bool = field(
        default=False,
        metadata={
            "help": (
                "documents in a sample do not see each other, and positions begin anew in each, as if each document "
                "were alone; an empty line ends a document"
            )
        },
    )


class LanguageModel(RetainsDropout, Pretrained, FairseqLanguageModel):
    """A causal decoder for fairseq's language_modeling task; each preset is a subclass."""

    preset: Preset
    fits = FITTING_TASKS
    separates_documents = True
    """``forward`` takes document_starts (--pack-documents)."""
    config_class: Any = DecoderConfig
    decoder_class: Any = TextDecoder
    added_tokens = 0
    """Tokens in front of a text."""
    packs_documents = False
    """Documents are told apart by empty lines, unless batches say where they begin."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LanguageModel":
        """Build a model for the task's dictionary, as long as --max-target-positions or else
        --tokens-per-sample, and one position more for the <s> of --add-bos-token.

        Raises:
            InputError: options contradict each other or the task.
        """
        source, target = task.source_dictionary, task.target_dictionary
        if len(source) != len(target):
            raise InputError(
                f"--output-dictionary-size ({len(target)}) below the {len(source)} entries of the dictionary is not "
                "supported; make a smaller dictionary with fairseq-preprocess --nwordssrc."
            )
        added = int(cfg.add_bos_token is True)
        length = (cfg.max_target_positions or cfg.tokens_per_sample) + added
        config = core_config(cfg, cls.config_class, cls.preset, vocab_size=len(source), max_target_positions=length)
        model = cls(cls.decoder_class(config, source, token_embedding(source, config.decoder_embed_dim)))
        model.added_tokens = added
        if cfg.pack_documents:
            check_packing(cfg._name, model)
            model.packs_documents = True
        return model

    def forward(self, src_tokens: Tensor, document_starts: Tensor | None = None, **arguments: Any) -> Any:
        """Logits of all next tokens; arguments as of the decoder's ``forward``."""
        if self.packs_documents and document_starts is None:
            document_starts = self.document_starts(src_tokens)
        return self.decoder(src_tokens, document_starts=document_starts, **arguments)

    def document_starts(self, src_tokens: Tensor) -> Tensor:
        """(batch, seq), True for the first token of each document that an empty line separates, and of padding."""
        dictionary = self.decoder.dictionary
        return starts_after_empty_lines(src_tokens, dictionary.eos(), dictionary.pad())

    def max_positions(self) -> int:
        """Longest text in tokens, without those that the task adds to it."""
        return self.decoder.max_positions() - self.added_tokens

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Called by fairseq before it generates or, in fairseq-eval-lm, scores text.

        Raises:
            InputError: --context-window leaves nothing of a sample to score.
        """
        window = cfg.eval_lm.context_window
        length = cfg.task.tokens_per_sample + window if window > 0 else 0
        if window > 0 and window >= length:
            raise InputError(
                f"--context-window ({window}) must be smaller than --tokens-per-sample ({length}), of which it is a "
                f"part, and that at most the model's length ({self.max_positions()}); give "
                f"--context-window {length // 2}, say."
            )
        super().prepare_for_inference_(cfg)


register_presets(LanguageModel, LANGUAGE, DecoderConfig, LanguageModelOptions, FROM_TASK)
