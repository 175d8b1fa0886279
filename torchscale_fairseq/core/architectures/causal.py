"""The base of causal decoders with attention or retention: embedding, loop over layers, output layer, state."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..config import EncoderConfig
from ..layers.attention_inputs import AttentionInputs
from ..layers.cache import DecodingState, LayerState, reorder_incremental_state
from ..layers.hooked import call_uncompiled
from ..ops.masks import as_mask, marked
from .layer_sequence import routing_outputs
from .stack import Stack
from .step_graphs import StepGraphs


class CausalStack(Stack):
    """A side whose tokens see earlier ones: all positions at once, or step by step with a state."""

    _step_graphs: StepGraphs | None = None

    def record_steps(self, graphs: StepGraphs | None = None) -> None:
        """Run later steps of one new token as CUDA graphs where they can be recorded: on a GPU, without
        gradients, experts, dilated attention and padding. ``inner_states`` of such a step is empty. The model keeps
        memory for the largest state.

        Args:
            graphs: by default new ones.
        """
        self._step_graphs = graphs or StepGraphs()

    def _finish_decoder(
        self, output_projection: nn.Module | None, *, one_region: bool = False, uneven: bool = False
    ) -> None:
        """Add the output projection, the one given or the config's, initialise and compile."""
        assert not isinstance(self.config, EncoderConfig)
        shared = self.config.shares_output_embedding
        self.output_projection = self._output_projection(
            output_projection, "share_decoder_input_output_embed", shared=shared
        )
        self._finish(one_region=one_region, uneven=uneven)

    def output_layer(self, features: Tensor) -> Tensor:
        """Features (..., width) to logits, if there is an output projection."""
        return features if self.output_projection is None else self.output_projection(features)

    def reorder_incremental_state(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        """Make the state follow its sequences, as beam search moves, drops and repeats them.

        Args:
            incremental_state: the caller's dictionary.
            new_order: (new batch,), rows to keep.
        """
        reorder_incremental_state(incremental_state, new_order)

    def _recorded_step(
        self, prev_output_tokens: Tensor, state: DecodingState | None, padding_mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]] | None:
        """The result of ``forward`` by a recorded step, or None to compute it as usual."""
        if self._step_graphs is None or state is None or prev_output_tokens.size(1) != state.length + 1:
            return None
        logits = self._step_graphs.step(self, state, prev_output_tokens[:, -1:], padding_mask)
        if logits is None:
            return None
        return logits, {"inner_states": [], **routing_outputs([None] * len(self.layers)), "attn": None}

    def _embed(self, new_tokens: Tensor, token_embeddings: Tensor | None) -> Tensor:
        if new_tokens.size(1) == 0:
            raise ValueError("prev_output_tokens has no token that incremental_state has not seen.")
        if token_embeddings is not None:
            return self.embed_scale * token_embeddings[:, -new_tokens.size(1) :]
        return self.embed_scale * self._embed_tokens(new_tokens)

    def _memory(self, encoder_out: dict[str, Any] | None, state: DecodingState | None) -> AttentionInputs | None:
        """The encoder's output and its padding, which a state keeps from its first step."""
        if encoder_out is None:
            return None
        if state is not None and state.length > 0:
            padding_mask = state.memory_padding_mask
        else:
            padding_mask = marked(as_mask(encoder_out.get("encoder_padding_mask"), "encoder_padding_mask"))
        if state is not None:
            state.memory_padding_mask = padding_mask
        return AttentionInputs(memory=encoder_out["encoder_out"], key_padding_mask=padding_mask)

    def _static_decode(self, x: Tensor, *inputs: Any, layers: list[LayerState]) -> Tensor:
        """Run the embedded tokens of a static state through its layers and the output layer."""
        outputs, _ = self.layers.forward(x, *inputs, None, states=layers, keep_outputs=False)
        x = outputs[-1] if self.layer_norm is None else self.layer_norm(outputs[-1])
        return self.output_layer(x)

    def _decode(
        self,
        x: Tensor,
        *inputs: Any,
        state: DecodingState | None,
        encoder_out: dict[str, Any] | None,
        features_only: bool,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run embedded tokens through the layers and the output layer.

        Args:
            x: (batch, seq, width), embedded tokens.
            inputs: of the layers.
            state: of earlier tokens; takes in these.
            encoder_out: what the encoder returned; its routing is reported first.
            features_only: skip the output layer.
        """
        states = None if state is None else state.layers
        # a step is too small to profit from compiled code
        run = self.layers if state is None else partial(call_uncompiled, self.layers)
        inner_states, reports = run(x, *inputs, states=states, recompute=self.config.checkpoint_activations)
        if state is not None:
            state.length += x.size(1)
        x = inner_states[-1]
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if not features_only:
            x = self.output_layer(x)
        return x, {"inner_states": inner_states, **routing_outputs(reports, encoder_out), "attn": None}
