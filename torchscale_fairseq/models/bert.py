"""Masked language models: ``bert_magneto``, ``bert_deepnorm`` and their sizes, and TorchScale's ``mlm_base``."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from fairseq.models import FairseqEncoderModel
from torch import Tensor, nn

from torchscale_fairseq.core.config import EncoderConfig
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.heads import POOLER_ACTIVATIONS, ClassificationHead, MaskedLanguageModelHead
from torchscale_fairseq.core.layers.hooked import is_hooked
from torchscale_fairseq.core.layers.norm import build_norm
from torchscale_fairseq.core.option_error import not_among
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

from ._dictionary import token_embedding
from ._encoder import TextEncoder
from ._fits import MASKED as FITTING_TASKS
from ._hubs import MaskedLanguageHub
from ._options import ModelOptions, Preset, core_config
from ._presets import MASKED
from ._pretrained import Pretrained
from ._registration import register_presets

logger = logging.getLogger(__name__)

HEADS = "classification_heads."


@dataclass
class MaskedLanguageModelOptions(ModelOptions):
    """Options of fairseq's side alone."""

    pooler_activation_fn: str = field(
        default="tanh",
        metadata={"help": f"activation in classification heads; one of {', '.join(POOLER_ACTIVATIONS)}"},
    )
    pooler_dropout: float = field(default=0.0, metadata={"help": "dropout probability in classification heads"})


class MaskedLanguageModel(Pretrained, FairseqEncoderModel):
    """A bidirectional encoder for fairseq's masked_lm and sentence_prediction tasks; each preset is a subclass.

    Args:
        encoder: with a head to the vocabulary.
        options: those of classification heads.
    """

    preset: Preset
    hub = MaskedLanguageHub
    fits = FITTING_TASKS
    separates_documents = True
    """``forward`` takes document_starts (--pack-documents)."""
    instead = (
        "A masked language model reads a whole sequence at once and does not predict the next token: "
        "torchscale-fairseq fill-masks fills masked words, and fairseq-validate measures it."
    )
    """The remedy that is added where the model is refused."""
    config_class = EncoderConfig

    def __init__(self, encoder: TextEncoder, options: MaskedLanguageModelOptions):
        super().__init__(encoder)
        self.options = options
        self.classification_heads = nn.ModuleDict()

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MaskedLanguageModel":
        """Build a model for the task's dictionary.

        Raises:
            InputError: options contradict each other.
        """
        dictionary = task.source_dictionary or task.target_dictionary  # cross_lingual_lm has the second alone
        config = core_config(cfg, cls.config_class, cls.preset, vocab_size=len(dictionary))
        options = MaskedLanguageModelOptions(
            pooler_activation_fn=cfg.pooler_activation_fn, pooler_dropout=cfg.pooler_dropout
        )
        if options.pooler_activation_fn not in POOLER_ACTIVATIONS:
            raise not_among("pooler_activation_fn", options.pooler_activation_fn, list(POOLER_ACTIVATIONS))
        embedding = token_embedding(dictionary, config.encoder_embed_dim)
        matrix = embedding
        if not config.share_encoder_input_output_embed:
            matrix = token_embedding(dictionary, config.encoder_embed_dim)
        norm = build_norm(config.norm, config.encoder_embed_dim, config.layernorm_eps)
        head = MaskedLanguageModelHead(matrix, config.activation_fn, norm)
        return cls(TextEncoder(config, dictionary, embedding, head), options)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        masked_tokens: Tensor | None = None,
        masked_positions: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
        document_starts: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Read whole sequences.

        Args:
            src_tokens: (batch, seq).
            src_lengths: given by fairseq, and not needed: padding is read off the tokens.
            features_only: return features (batch, seq, width).
            return_all_hiddens: fill inner_states.
            classification_head_name: return this head's scores, (batch, classes).
            masked_tokens: (batch, seq), True where logits are wanted; they come as (tokens, vocabulary).
            masked_positions: (tokens,), places of tokens in the batch, counted row by row. Instead of logits, their
                features are returned as ``projection`` takes them, (tokens, width).
            sequence_slice: the tokens are this slice of longer rows (--seq-parallel).
            document_starts: (batch, seq), True for the first token of each document and of padding
                (--pack-documents).

        Returns:
            Logits (batch, seq, vocabulary) by default; and inner_states, a list of (batch, seq, width),
            with l_aux and routing as from ``Encoder``.
        """
        output = self.encoder(
            src_tokens,
            return_all_hiddens=return_all_hiddens,
            features_only=True,
            sequence_slice=sequence_slice,
            document_starts=document_starts,
        )
        x = output["encoder_out"]
        if masked_positions is not None:
            x = self.encoder.output_projection.transform(x.flatten(0, 1).index_select(0, masked_positions))
        elif classification_head_name is not None:
            x = self.classification_heads[classification_head_name](x)
        elif not features_only:
            x = self.encoder.output_projection(x if masked_tokens is None else x[masked_tokens])
        states = output["encoder_states"] if return_all_hiddens else None
        return x, {"inner_states": states, "l_aux": output["l_aux"], "routing": output["routing"]}

    def extract_features(self, src_tokens: Tensor, **arguments: Any) -> tuple[Tensor, dict[str, Any]]:
        """Features (batch, seq, width) instead of logits; arguments and the rest as of ``forward``."""
        features: tuple[Tensor, dict[str, Any]] = self(src_tokens, **arguments, features_only=True)
        return features

    @property
    def projection(self) -> tuple[Tensor, Tensor] | None:
        """Weight (vocabulary, width) and bias (vocabulary,) that make logits of features at masked_positions; None if a
        caller has hooked the head, which has to be called then."""
        head = self.encoder.output_projection
        return None if is_hooked(head) else (head.weight, head.bias)

    @property
    def supported_targets(self) -> set[str]:
        """The targets that fairseq's tasks may ask for: the tokens that are read."""
        return {"self"}

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        """(Log-)probabilities in float32 from what ``forward`` returns."""
        normalise = F.log_softmax if log_probs else F.softmax
        return normalise(net_output[0].float(), dim=-1)

    def register_classification_head(self, name: str, num_classes: int, inner_dim: int | None = None) -> None:
        """Add a head, or keep the one of that name if it has this size.

        Args:
            name: under which ``forward`` finds it.
            num_classes: its scores.
            inner_dim: its inner width; the encoder's by default.
        """
        width = self.encoder.config.encoder_embed_dim
        present = dict(self.classification_heads.items()).get(name)
        shape = (num_classes, inner_dim or width)
        if isinstance(present, ClassificationHead) and present.out_proj.weight.shape == shape:
            return
        self.classification_heads[name] = ClassificationHead(
            width,
            inner_dim or width,
            num_classes,
            activation_fn=self.options.pooler_activation_fn,
            dropout=self.options.pooler_dropout,
        )

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Called by fairseq before it generates.

        Raises:
            InputError: always.
        """
        raise InputError(
            "fairseq-generate, fairseq-interactive and fairseq-eval-lm need a causal architecture, such as "
            f"gpt_deepnorm. {self.instead}"
        )

    def max_positions(self) -> int:
        """Longest sequence in tokens."""
        return self.encoder.max_positions()

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint with other classification heads be loaded: this model's own stay as they are."""
        super().upgrade_state_dict_named(state_dict, name)
        own = {HEADS + key: value for key, value in self.classification_heads.state_dict().items()}
        fits = {key for key, value in own.items() if key in state_dict and state_dict[key].shape == value.shape}
        heads = {_head(key) for key in own}
        replaced = {head for head in heads if any(_head(key) == head and key not in fits for key in own)}
        for key in [key for key in state_dict if key.startswith(HEADS)]:
            if _head(key) not in heads or _head(key) in replaced:
                logger.warning("not loaded: %s, as this model has no such classification head", key)
                del state_dict[key]
        for key, value in own.items():
            if _head(key) in replaced:
                logger.warning("not in the checkpoint, and left as initialised: %s", key)
                state_dict[key] = value


def _head(key: str) -> str:
    return key.removeprefix(HEADS).split(".")[0]


register_presets(MaskedLanguageModel, MASKED, EncoderConfig, MaskedLanguageModelOptions)
