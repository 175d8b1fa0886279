"""Translation models: ``mt_deepnorm``, ``mt_magneto`` and their sizes, and TorchScale's ``mt_base``."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.models import FairseqEncoderDecoderModel
from torch import Tensor

from torchscale_fairseq.core.config import EncoderDecoderConfig
from torchscale_fairseq.core.errors import InputError

from ._beams import SharesRowsOfBeams
from ._decoder import TextDecoder
from ._dictionary import token_embedding
from ._dropout import RetainsDropout
from ._encoder import TextEncoder
from ._fits import TRANSLATION as FITTING_TASKS
from ._options import ModelOptions, Preset, core_config
from ._presets import TRANSLATION
from ._pretrained import Pretrained
from ._registration import register_presets

FROM_TASK = ("max_source_positions", "max_target_positions")


@dataclass
class TranslationOptions(ModelOptions):
    """Options of fairseq's side alone."""

    encoder_embed_path: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "text file of pretrained encoder embeddings"}
    )
    decoder_embed_path: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "text file of pretrained decoder embeddings"}
    )
    pack_sentences: bool = field(
        default=False,
        metadata={
            "help": (
                "train on the sentences of a batch as one row, without padding; no sentence sees another, so losses "
                "and gradients stay what they are"
            )
        },
    )


class TranslationEncoder(SharesRowsOfBeams, TextEncoder):
    """An encoder whose output follows beam search."""


class TranslationModel(RetainsDropout, Pretrained, FairseqEncoderDecoderModel):
    """An encoder-decoder for fairseq's translation tasks; each preset is a subclass."""

    preset: Preset
    fits = FITTING_TASKS
    config_class: Any = EncoderDecoderConfig
    decoder_class: Any = TextDecoder
    packs_sentences = False
    """Batches are packed in training (--pack-sentences)."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "TranslationModel":
        """Build a model for the task's dictionaries.

        Raises:
            InputError: options contradict each other or the task.
        """
        if getattr(getattr(task, "cfg", None), "load_alignments", False):
            raise InputError(
                "--load-alignments trains attention weights, which this model's fused attention does not keep; leave "
                "it out, or train --arch transformer_align."
            )
        source, target = task.source_dictionary, task.target_dictionary
        config = core_config(cfg, cls.config_class, cls.preset, vocab_size=len(target))
        encoder_embedding = token_embedding(source, config.encoder_embed_dim, cfg.encoder_embed_path)
        if config.share_all_embeddings:
            if source != target:
                raise InputError(
                    f"--share-all-embeddings needs one dictionary for both languages, but they have {len(source)} "
                    f"and {len(target)} entries; run fairseq-preprocess with --joined-dictionary."
                )
            if cfg.decoder_embed_path not in (None, cfg.encoder_embed_path):
                raise InputError("--share-all-embeddings takes --encoder-embed-path alone; drop --decoder-embed-path.")
            decoder_embedding = encoder_embedding
        else:
            decoder_embedding = token_embedding(target, config.decoder_embed_dim, cfg.decoder_embed_path)
        model = cls(
            TranslationEncoder(config, source, encoder_embedding),
            cls.decoder_class(config, target, decoder_embedding),
        )
        if getattr(cfg, "pack_sentences", False):
            _check_packing(cfg._name, model)
            model.packs_sentences = True
        return model

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        source_starts: Tensor | None = None,
        document_starts: Tensor | None = None,
        **arguments: Any,
    ) -> Any:
        """Logits of the next target tokens, teacher-forced.

        Args:
            src_tokens: (batch, source seq).
            src_lengths: (batch,).
            prev_output_tokens: (batch, target seq).
            source_starts, document_starts: (batch, source or target seq), True for the first tokens of packed
                sentences, in the order of the other language's; both or none.
            arguments: of both sides.
        """
        if source_starts is None:
            return super().forward(src_tokens, src_lengths, prev_output_tokens, **arguments)
        encoded = self.encoder(src_tokens, src_lengths=src_lengths, document_starts=source_starts, **arguments)
        return self.decoder(prev_output_tokens, encoder_out=encoded, document_starts=document_starts, **arguments)

    @property
    def full_context_alignment(self) -> bool:
        """Asked for by ``--print-alignment``.

        Raises:
            InputError: always; fused attention keeps no weights to align by.
        """
        raise InputError(
            "--print-alignment needs attention weights, which this model's fused attention does not keep; align the "
            "finished translations with a word aligner (fast_align, awesome-align), or train --arch transformer_align."
        )


def _check_packing(arch: str, model: TranslationModel) -> None:
    if not isinstance(model.decoder, TextDecoder):
        raise InputError(
            f"--pack-sentences needs a decoder with attention, but --arch {arch} has one with retention; drop "
            "--pack-sentences, or give --arch mt_deepnorm."
        )


register_presets(TranslationModel, TRANSLATION, EncoderDecoderConfig, TranslationOptions, FROM_TASK)
