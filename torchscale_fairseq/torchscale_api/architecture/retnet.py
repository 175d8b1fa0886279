"""RetNet's decoder with TorchScale's arguments and seams (arXiv:2307.08621)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...core.initialization import deepnorm_scaling
from ..component.gate_linear_unit import GLU
from ..component.multiscale_retention import MultiScaleRetention
from ..component.rms_norm import RMSNorm
from ._layers import LayerBase, drop_path_of
from ._stack import CausalStackBase, output_projection_of

_SCALED = ("fc1", "fc2", "out_proj", "v_proj")


class RetNetRelPos(nn.Module):
    """Rotations and decays for a number of tokens.

    Args:
        args: a ``RetNetConfig``, or the like.
    """

    angle: Tensor
    decay: Tensor

    def __init__(self, args: Any):
        super().__init__()
        heads = args.decoder_retention_heads
        pairs = args.decoder_embed_dim // heads // 2
        angle = 10000 ** -torch.linspace(0, 1, pairs)
        self.register_buffer("angle", angle.repeat_interleave(2))
        self.register_buffer("decay", torch.log(1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float))))
        self.recurrent_chunk_size = args.recurrent_chunk_size

    def forward(self, slen: int, activate_recurrent: bool = False, chunkwise_recurrent: bool = False) -> Any:
        """((sines, cosines), decays), as ``MultiScaleRetention`` takes them.

        Args:
            slen: tokens.
            activate_recurrent: for the last of them alone.
            chunkwise_recurrent: for chunks.
        """
        decay, angle = self.decay.float(), self.angle.float()
        if activate_recurrent:
            turned = angle * (slen - 1)
            return (turned.sin(), turned.cos()), decay.exp()
        index = torch.arange(slen, device=decay.device, dtype=torch.float)
        turned = index[:, None] * angle
        sums = (torch.expm1((index + 1) * decay[:, None]) / torch.expm1(decay)[:, None]).sqrt()[..., None]
        if not chunkwise_recurrent:
            return (turned.sin(), turned.cos()), self._decays(slen) / sums
        size = self.recurrent_chunk_size
        within = torch.arange(size, device=decay.device, dtype=torch.float)
        of_queries = ((within + 1) * decay[:, None]).exp()[..., None]
        of_values = ((size - 1 - within) * decay[:, None]).exp()[..., None]
        over_chunk = (decay * size).exp()[:, None, None]
        return (turned.sin(), turned.cos()), (self._decays(size), over_chunk, of_queries, of_values, sums)

    def _decays(self, length: int) -> Tensor:
        """(heads, length, length), of key m for query n, zero for later keys."""
        index = torch.arange(length, device=self.decay.device)
        elapsed = index[:, None] - index[None]
        return (elapsed.clamp_min(0) * self.decay.float()[:, None, None]).exp().tril()


class DecoderLayer(LayerBase):
    """Retention and a gated feed-forward network.

    Args:
        args: a ``RetNetConfig``, or the like.
        depth: of the layer, from 0.
        is_moe_layer: whether it has experts.
    """

    def __init__(self, args: Any, depth: int, is_moe_layer: bool = False):
        super().__init__()
        self.args = args
        self.embed_dim = args.decoder_embed_dim
        self.dropout_module = nn.Dropout(args.dropout)
        self.drop_path = drop_path_of(args, depth, args.decoder_layers)
        self.retention = self.build_retention(self.embed_dim, args)
        self.normalize_before = args.decoder_normalize_before
        self.retention_layer_norm = RMSNorm(self.embed_dim, eps=args.layernorm_eps)
        self._set_feed_forward(args, args.decoder_ffn_embed_dim, is_moe_layer)
        self.final_layer_norm = RMSNorm(self.embed_dim, eps=args.layernorm_eps)
        self.alpha = (2.0 * args.decoder_layers) ** 0.25 if args.deepnorm else 1.0

    def build_ffn(self, embed_dim: int, args: Any) -> nn.Module:
        """The feed-forward network; for subclasses to override."""
        return GLU(embed_dim, self.ffn_dim, args.activation_fn, args.dropout, args.activation_dropout)

    def build_retention(self, embed_dim: int, args: Any) -> nn.Module:
        """Retention; for subclasses to override."""
        return MultiScaleRetention(args, embed_dim, args.decoder_value_embed_dim, args.decoder_retention_heads)

    def forward(
        self,
        x: Tensor,
        incremental_state: dict[str, Tensor] | None = None,
        chunkwise_recurrent: bool = False,
        retention_rel_pos: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, seq, width) to the same shape, and the balance loss or None."""
        residual = x
        if self.normalize_before:
            x = self.retention_layer_norm(x)
        x = self.retention(
            x,
            incremental_state=incremental_state,
            rel_pos=retention_rel_pos,
            chunkwise_recurrent=chunkwise_recurrent,
        )
        x = self._add(self.dropout_module(x), residual, self.retention_layer_norm)
        return self._feed_forward(x, time_first=False)


class RetNetDecoder(CausalStackBase):
    """A stack of layers with retention.

    Args:
        args: a ``RetNetConfig``, or the like.
        embed_tokens: an embedding.
        output_projection: from features to logits; built by default if the config has a vocabulary.
        kwargs: for the constructor of a further class that a subclass inherits from, such as fairseq's.
    """

    def __init__(
        self,
        args: Any,
        embed_tokens: nn.Module | None = None,
        output_projection: nn.Module | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.args = args
        self.embed_dim = args.decoder_embed_dim
        self._set_embeddings(self.embed_dim, embed_tokens)
        self._set_output(output_projection)
        self._set_layers(
            self.embed_dim,
            partial(RMSNorm, eps=args.layernorm_eps),
            args.decoder_layers,
            lambda depth, is_moe_layer: self.build_decoder_layer(args, depth, is_moe_layer),
            final_norm=args.decoder_normalize_before,
        )
        self.retnet_rel_pos = RetNetRelPos(args)
        self.chunkwise_recurrent = args.chunkwise_recurrent
        self.recurrent_chunk_size = args.recurrent_chunk_size
        if args.deepnorm:
            gain = deepnorm_scaling(encoder_layers=0, decoder_layers=args.decoder_layers)[1].gain
            for name, parameter in self.named_parameters():
                if any(part in name for part in _SCALED):
                    parameter.data.mul_(gain)

    def build_output_projection(self, args: Any) -> nn.Module:
        """From features to the vocabulary; for subclasses to override."""
        tied = self.embed_tokens if args.share_decoder_input_output_embed else None
        return output_projection_of(args, args.decoder_embed_dim, tied)

    def build_decoder_layer(self, args: Any, depth: int, is_moe_layer: bool = False) -> nn.Module:
        """One layer; for subclasses to override."""
        return DecoderLayer(args, depth, is_moe_layer=is_moe_layer)

    def forward_embedding(
        self, tokens: Tensor, token_embedding: Tensor | None = None, incremental_state: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The first layer's input, and scaled embeddings; only of the last token if a state has earlier ones."""
        if has_state(incremental_state):
            tokens = tokens[:, -1:]
            token_embedding = None if token_embedding is None else token_embedding[:, -1:]
        return self._embed(tokens, token_embedding, None)

    def forward(
        self,
        prev_output_tokens: Tensor,
        incremental_state: Any = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode a batch; arguments as in TorchScale, others are ignored.

        Args:
            incremental_state: a dictionary, in which each layer keeps prev_key_value and scale.

        Returns:
            Logits, or features; and inner_states, l_aux and attn.
        """
        total = prev_output_tokens.size(1)
        x, _ = self.forward_embedding(prev_output_tokens, token_embeddings, incremental_state)
        if incremental_state is not None:
            x, states, balance = self._steps(x, total, incremental_state)
        else:
            x, states, balance = self._whole(x)
        return self._finish(x, states, balance, features_only=features_only)

    def _whole(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Any]]:
        length, size = x.size(1), self.recurrent_chunk_size
        if self.chunkwise_recurrent and length % size:
            x = nn.functional.pad(x, (0, 0, 0, size - length % size))
        tables = self.retnet_rel_pos(x.size(1), chunkwise_recurrent=self.chunkwise_recurrent)
        states, balance = [x[:, :length]], []
        for layer in self.layers:
            x, l_aux = self._run(
                layer,
                x,
                incremental_state=None,
                chunkwise_recurrent=self.chunkwise_recurrent,
                retention_rel_pos=tables,
            )
            states.append(x[:, :length])
            balance.append(l_aux)
        return x[:, :length], states, balance

    def _steps(self, x: Tensor, total: int, incremental_state: Any) -> tuple[Tensor, list[Tensor], list[Any]]:
        """Token by token; a state that is empty gets the whole prompt."""
        outputs: list[list[Tensor]] = []
        balance: list[Any] = []
        for place, token in enumerate(x.split(1, 1), total - x.size(1) + 1):
            tables = self.retnet_rel_pos(place, activate_recurrent=True)
            states, balance = [token], []
            for index, layer in enumerate(self.layers):
                state = incremental_state.setdefault(index, {})
                token, l_aux = layer(token, incremental_state=state, retention_rel_pos=tables)
                states.append(token)
                balance.append(l_aux)
            outputs.append(states)
        joined = [torch.cat(parts, 1) for parts in zip(*outputs, strict=True)]
        return joined[-1], joined, balance


def has_state(incremental_state: Any) -> bool:
    """Whether earlier tokens are remembered."""
    return bool(incremental_state) and bool(incremental_state.get(0))
