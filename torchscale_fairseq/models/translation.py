"""Translation models: ``mt_deepnorm``, ``mt_magneto`` and their sizes, and TorchScale's ``mt_base``."""

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.models import FairseqEncoderDecoderModel
from torch import Tensor

from torchscale_fairseq.core.config import EncoderDecoderConfig
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.cache import rows_of_groups

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


class TranslationEncoder(TextEncoder):
    """An encoder whose output follows beam search."""

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        """Follow beam search. The beams of a sentence share its row as long as they stay together."""
        rows = encoder_out["encoder_out"].size(0)
        beams = encoder_out.get("beams", 0)
        if not beams:
            beams = new_order.numel() // rows
            together = torch.arange(rows, device=new_order.device).repeat_interleave(beams)
            if torch.equal(new_order, together):
                return {**encoder_out, "beams": beams}
            kept: Tensor | None = new_order
        else:
            kept = rows_of_groups(new_order, rows * beams, rows)
        if kept is None:
            return encoder_out
        return {
            **{
                name: encoder_out[name].index_select(0, kept)
                for name in ("encoder_out", "encoder_embedding", "encoder_padding_mask")
            },
            "encoder_states": [state.index_select(0, kept) for state in encoder_out["encoder_states"]],
            "l_aux": encoder_out["l_aux"],
            "routing": encoder_out["routing"],
            "beams": new_order.numel() // kept.numel(),
        }


class TranslationModel(RetainsDropout, Pretrained, FairseqEncoderDecoderModel):
    """An encoder-decoder for fairseq's translation tasks; each preset is a subclass."""

    preset: Preset
    fits = FITTING_TASKS
    config_class: Any = EncoderDecoderConfig
    decoder_class: Any = TextDecoder

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
        return cls(
            TranslationEncoder(config, source, encoder_embedding),
            cls.decoder_class(config, target, decoder_embedding),
        )

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


register_presets(TranslationModel, TRANSLATION, EncoderDecoderConfig, TranslationOptions, FROM_TASK)
