"""Translation models: ``mt_deepnorm``, ``mt_magneto`` and their sizes, and TorchScale's ``mt_base``."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder, register_model
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.blocks import SideOptions
from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.encoder import Encoder
from torchscale_fairseq.core.config import EncoderDecoderConfig
from torchscale_fairseq.core.layers.cache import rows_of_groups
from torchscale_fairseq.core.layers.embedding import TextEmbedding
from torchscale_fairseq.core.ops.positions import absolute_positions

from ._options import Preset, core_config, fairseq_dataclass
from ._presets import TRANSLATION


@dataclass
class PretrainedEmbeddings(FairseqDataclass):
    """Options of fairseq's side alone."""

    encoder_embed_path: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "text file of pre-trained encoder embeddings"}
    )
    decoder_embed_path: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "text file of pre-trained decoder embeddings"}
    )


class TranslationEncoder(FairseqEncoder, Encoder):
    """The core's encoder behind fairseq's interface."""

    def __init__(self, config: EncoderDecoderConfig, dictionary: Any, embed_tokens: nn.Embedding):
        positions = SideOptions(config, "encoder", is_encoder_decoder=True).position_embedding()
        Encoder.__init__(self, config, embed_tokens, positions, is_encoder_decoder=True)
        self.dictionary = dictionary

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, Any]:
        """Encode (batch, seq) tokens; padding, on either side, is read off them."""
        padding_mask = src_tokens.eq(self.dictionary.pad())
        return Encoder.forward(
            self,
            src_tokens,
            padding_mask,
            return_all_hiddens=return_all_hiddens,
            token_embeddings=token_embeddings,
            positions=absolute_positions(padding_mask) if self.config.torchscale_compatible else None,
        )

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
            "beams": new_order.numel() // kept.numel(),
        }

    def max_positions(self) -> int:
        """Longest source in tokens."""
        return self.config.max_source_positions

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """Drop what TorchScale's checkpoints hold beside parameters."""
        return _without_fairseq_constants(state_dict, name)


class TranslationDecoder(FairseqIncrementalDecoder, Decoder):
    """The core's decoder behind fairseq's interface."""

    def __init__(self, config: EncoderDecoderConfig, dictionary: Any, embed_tokens: nn.Embedding):
        positions = SideOptions(config, "decoder", is_encoder_decoder=True).position_embedding()
        Decoder.__init__(self, config, embed_tokens, positions, is_encoder_decoder=True)
        self.dictionary = dictionary
        self.adaptive_softmax = None  # both asked for by FairseqDecoder.get_normalized_probs
        self.onnx_trace = False

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: dict[Any, Any] | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        src_lengths: Tensor | None = None,
        token_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode (batch, seq) tokens; padding, on either side, is read off them."""
        return Decoder.forward(
            self,
            prev_output_tokens,
            prev_output_tokens.eq(self.dictionary.pad()),
            encoder_out=encoder_out,
            incremental_state=incremental_state,
            features_only=features_only,
            return_all_hiddens=return_all_hiddens,
            token_embeddings=token_embeddings,
        )

    def extract_features(self, prev_output_tokens: Tensor, **arguments: Any) -> tuple[Tensor, dict[str, Any]]:
        """The same without the output projection."""
        return self.forward(prev_output_tokens, **arguments, features_only=True)

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """Features to logits."""
        return Decoder.output_layer(self, features)

    def reorder_incremental_state(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        """Follow beam search."""
        Decoder.reorder_incremental_state(self, incremental_state, new_order)

    def max_positions(self) -> int:
        """Longest target in tokens."""
        return self.config.max_target_positions

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """Drop what TorchScale's checkpoints hold beside parameters."""
        return _without_fairseq_constants(state_dict, name)


class TranslationModel(FairseqEncoderDecoderModel):
    """An encoder-decoder for fairseq's translation tasks; each preset is a subclass."""

    preset: Preset

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "TranslationModel":
        """Build a model for the task's dictionaries.

        Raises:
            ValueError: options contradict each other or the task.
        """
        source, target = task.source_dictionary, task.target_dictionary
        config = core_config(cfg, EncoderDecoderConfig, cls.preset, vocab_size=len(target))
        encoder_embedding = _embedding(source, config.encoder_embed_dim, cfg.encoder_embed_path)
        if config.share_all_embeddings:
            if source != target:
                raise ValueError(
                    f"--share-all-embeddings needs one dictionary for both languages, but they have {len(source)} "
                    f"and {len(target)} entries; run fairseq-preprocess with --joined-dictionary."
                )
            if cfg.decoder_embed_path not in (None, cfg.encoder_embed_path):
                raise ValueError("--share-all-embeddings takes --encoder-embed-path alone; drop --decoder-embed-path.")
            decoder_embedding = encoder_embedding
        else:
            decoder_embedding = _embedding(target, config.decoder_embed_dim, cfg.decoder_embed_path)
        return cls(
            TranslationEncoder(config, source, encoder_embedding),
            TranslationDecoder(config, target, decoder_embedding),
        )

    @property
    def full_context_alignment(self) -> bool:
        """Asked for by ``--print-alignment``.

        Raises:
            ValueError: always; fused attention keeps no weights to align by.
        """
        raise ValueError(
            "--print-alignment needs attention weights, which this model's fused attention does not keep; align the "
            "finished translations with a word aligner (fast_align, awesome-align), or train --arch transformer_align."
        )

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        checkpoint_file: str | None = None,
        data_name_or_path: str | None = None,
        **overrides: Any,
    ) -> Any:
        """Load a trained model for translating text.

        Args:
            model_name_or_path: directory of checkpoints, such as --save-dir of a run.
            checkpoint_file: names in it, several (an ensemble) separated by ``os.pathsep``; checkpoint_best.pt
                or else checkpoint_last.pt by default.
            data_name_or_path: directory of the dictionaries; the one it was trained with by default.
            overrides: options of the task; a sentencepiece.bpe.model beside the dictionaries is used by default.

        Returns:
            fairseq's GeneratorHubInterface: ``.translate(text)``, ``.score(text)``, ``.models``.

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        from torchscale_fairseq.hooks.checkpoints import load_checkpoint

        directory = Path(model_name_or_path)
        if checkpoint_file is None:
            checkpoint_file = _newest_checkpoint(directory)
        if data_name_or_path is None:
            first = checkpoint_file.split(os.pathsep)[0]
            data_name_or_path = os.path.abspath(load_checkpoint(directory / first)["cfg"]["task"]["data"])
        pieces = Path(data_name_or_path) / "sentencepiece.bpe.model"
        if pieces.exists() and "bpe" not in overrides:
            overrides |= {"bpe": "sentencepiece", "sentencepiece_model": str(pieces)}
        return super().from_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, **overrides)


def _newest_checkpoint(directory: Path) -> str:
    for name in ("checkpoint_best.pt", "checkpoint_last.pt", "model.pt"):
        if (directory / name).exists():
            return name
    raise FileNotFoundError(
        f"{directory} holds neither checkpoint_best.pt nor checkpoint_last.pt; name one with checkpoint_file."
    )


def _embedding(dictionary: Any, width: int, path: str | None) -> TextEmbedding:
    embedding = TextEmbedding(len(dictionary), width, padding_idx=dictionary.pad())
    if path:
        utils.load_embedding(utils.parse_embedding(path), dictionary, embedding)
    return embedding


def _without_fairseq_constants(state_dict: dict[str, Any], name: str) -> dict[str, Any]:
    for constant in ("version", "embed_positions._float_tensor", "embed_positions.weights"):
        state_dict.pop(f"{name}.{constant}", None)
    return state_dict


for _name, _preset in TRANSLATION.items():
    register_model(
        _name, dataclass=fairseq_dataclass(f"{_name}_options", EncoderDecoderConfig, _preset, PretrainedEmbeddings)
    )(type(_name, (TranslationModel,), {"preset": _preset, "__doc__": TranslationModel.__doc__}))
