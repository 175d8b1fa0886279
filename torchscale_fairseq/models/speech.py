"""Speech recognition and translation: ``s2t_deepnorm``, ``s2t_magneto``, ``s2t_xmoe``, ``s2t_swiglu``, ``s2t_longnet``,
``s2t_retnet`` and their sizes, for fairseq's task speech_to_text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel
from torch import Tensor

from torchscale_fairseq.checkpoints.reading import CheckpointError, load_checkpoint
from torchscale_fairseq.core.architectures.speech import AnySpeechConfig, SpeechEncoder
from torchscale_fairseq.core.config import LongNetSpeechConfig, RetNetSpeechConfig, SpeechConfig
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.filterbank import frame_count

from ._beams import SharesRowsOfBeams
from ._decoder import RetNetTextDecoder, TextDecoder
from ._dictionary import token_embedding
from ._dropout import RetainsDropout
from ._fits import SPEECH as FITTING_TASKS
from ._joint_ctc import ScoresByCTC
from ._options import ModelOptions, Preset, core_config, of_task
from ._presets import SPEECH, SPEECH_LONGNET, SPEECH_RETENTION
from ._pretrained import Pretrained
from ._registration import register_presets
from ._speech_hub import SpeechHub

FROM_TASK = ("max_target_positions",)


@dataclass
class SpeechModelOptions(ModelOptions):
    """Options of fairseq's side alone. The task writes the three that come first into the model's part of the
    configuration; they have no flags."""

    input_feat_per_channel: int = field(default=of_task("input_feat_per_channel", 80))
    input_channels: int = field(default=of_task("input_channels", 1))
    speaker_to_id: Any = field(default=of_task("speaker_to_id"))
    ctc_weight: float = field(default="${oc.select:criterion.ctc_weight,0}")  # type: ignore[assignment]
    ctc_decoding_weight: float = field(
        default=0.3,
        metadata={
            "help": "with a criterion that has --ctc-weight: share of the CTC scores in the scores of beam search; the "
            "rest is the decoder's (default: 0.3)"
        },
    )
    load_pretrained_encoder_from: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={"help": "checkpoint of a speech model whose encoder this model's encoder starts from"},
    )


class SpeechToTextEncoder(SharesRowsOfBeams, FairseqEncoder, SpeechEncoder):
    """The core's encoder of speech behind fairseq's interface.

    Args:
        config: the options.
        longest: frames or samples of the longest source.
    """

    def __init__(self, config: AnySpeechConfig, longest: int):
        SpeechEncoder.__init__(self, config)
        self.dictionary = None
        self.longest = longest

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, return_all_hiddens: bool = False, **_: Any
    ) -> dict[str, Any]:
        """Encode (batch, frames, features), or (batch, samples) of raw audio."""
        return SpeechEncoder.forward(self, src_tokens, src_lengths, return_all_hiddens=return_all_hiddens)

    def max_positions(self) -> int:
        """Longest source in frames, or in samples of raw audio."""
        return self.longest


class SpeechDecoder(ScoresByCTC, TextDecoder):  # type: ignore[misc]
    """A decoder with attention whose scores CTC may share."""


class RetNetSpeechDecoder(ScoresByCTC, RetNetTextDecoder):  # type: ignore[misc]
    """A decoder with retention whose scores CTC may share."""


class SpeechModel(RetainsDropout, Pretrained, FairseqEncoderDecoderModel):
    """An encoder-decoder for fairseq's task speech_to_text; each preset is a subclass."""

    preset: Preset
    hub = SpeechHub
    fits = FITTING_TASKS
    config_class: Any = SpeechConfig
    decoder_class: Any = SpeechDecoder

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "SpeechModel":
        """Build a model for the task's features and dictionary.

        Raises:
            InputError: options contradict each other or the task, or the checkpoint to start from does not fit.
        """
        data, words, longest = task.data_cfg, task.target_dictionary, task.args.max_source_positions
        rate = data.use_sample_rate if data.use_audio_input else 0
        config = core_config(
            cfg,
            cls.config_class,
            cls.preset,
            vocab_size=len(words),
            input_features=cfg.input_feat_per_channel * cfg.input_channels,
            sample_rate=rate,
            ctc=bool(getattr(cfg, "ctc_weight", 0)),
            max_source_positions=max(1, frame_count(longest, rate)) if rate else longest,
        )
        encoder = SpeechToTextEncoder(config, longest)
        if cfg.load_pretrained_encoder_from:
            load_encoder(encoder, cfg.load_pretrained_encoder_from)
        decoder = cls.decoder_class(config, words, token_embedding(words, config.decoder_embed_dim))
        decoder.ctc_weight = cfg.ctc_decoding_weight
        return cls(encoder, decoder)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor, **arguments: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode prev_output_tokens (batch, target), given speech; the second value also has the encoder's output."""
        encoder_out = self.encoder(src_tokens, src_lengths=src_lengths)
        x, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out, **arguments)
        return x, {**extra, "encoder_out": encoder_out}

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """Probabilities of the next labels; in beam search those of CTC have their share."""
        probs = super().get_normalized_probs(net_output, log_probs, sample)
        return self.decoder.joint_scores(probs, net_output[1]) if log_probs else probs

    def get_ctc_output(self, net_output: tuple[Tensor, Any], sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(frames, batch, labels) log-probabilities and (batch,) lengths, for fairseq's criterions with CTC."""
        encoder_out = net_output[1]["encoder_out"]
        lengths = (~encoder_out["encoder_padding_mask"]).sum(1)
        return encoder_out["ctc_log_probs"].transpose(0, 1), lengths

    def get_ctc_target(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(batch, target) labels and their lengths, for fairseq's criterions with CTC."""
        return sample["target"], sample["target_lengths"]

    @property
    def full_context_alignment(self) -> bool:
        """Asked for by ``--print-alignment``.

        Raises:
            InputError: always; fused attention keeps no weights to align by.
        """
        raise InputError("--print-alignment needs attention weights, which this model's fused attention does not keep.")


class LongNetSpeechModel(SpeechModel):
    """``SpeechModel`` with dilated attention in the encoder, for minutes of audio; each preset is a subclass."""

    config_class = LongNetSpeechConfig


class RetNetSpeechModel(SpeechModel):
    """``SpeechModel`` with retention in the decoder; each preset is a subclass."""

    config_class = RetNetSpeechConfig
    decoder_class = RetNetSpeechDecoder


def load_encoder(encoder: SpeechToTextEncoder, path: str) -> None:
    """Start from the encoder of a checkpoint. The projection to labels is left as it is, since labels may differ.

    Raises:
        InputError: there is no such file.
        CheckpointError: its encoder has other parameters.
    """
    if not Path(path).is_file():
        raise InputError(f"--load-pretrained-encoder-from {path}: there is no such file; name a checkpoint.")
    given = _encoder_of(load_checkpoint(path)["model"])
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("ctc_proj.")}
    differing = [name for name in sorted(given | own) if _shape(given, name) != _shape(own, name)]
    if differing:
        raise CheckpointError(
            f"--load-pretrained-encoder-from {path} has another encoder, which differs in {differing[0]} and "
            f"{len(differing) - 1} more parameters; give the --arch and the sizes that it was trained with."
        )
    encoder.load_state_dict(given, strict=False)


def _encoder_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoder = {name.removeprefix("encoder."): v for name, v in state.items() if name.startswith("encoder.")}
    return {name: value for name, value in encoder.items() if not name.startswith("ctc_proj.")}


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


register_presets(SpeechModel, SPEECH, SpeechConfig, SpeechModelOptions, FROM_TASK)
register_presets(LongNetSpeechModel, SPEECH_LONGNET, LongNetSpeechConfig, SpeechModelOptions, FROM_TASK)
register_presets(RetNetSpeechModel, SPEECH_RETENTION, RetNetSpeechConfig, SpeechModelOptions, FROM_TASK)
