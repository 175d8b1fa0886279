"""Translation under fairseq's own SequenceGenerator: ours, official TorchScale and fairseq's ``transformer``.

Ours and the official model are one SubLN model on the same weights. ``transformer`` has the same sizes and
weights of its own, so every hypothesis is forced to the same length and all sides decode the same steps. All run in
float32 after ``make_generation_fast_``, as in fairseq-generate.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import (
    MODEL_REGISTRY,
    BaseFairseqModel,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
)
from fairseq.modules import PositionalEmbedding
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from benchmarks.decoders import Size
from benchmarks.measure import time_in_turns
from benchmarks.report import OFFICIAL, OURS, STOCK, DisagreementError, Row
from torchscale_fairseq import plugin

ALLOWED = 1e-4
"""Largest difference of a hypothesis' score, a mean log-probability per token."""


@dataclass(frozen=True)
class Sentences:
    """What is translated: random tokens, no padding."""

    size: Size
    batch: int
    source_length: int
    target_length: int
    beam: int
    device: str
    seed: int

    @property
    def title(self) -> str:
        """Name in the table."""
        return f"generation, {self.batch} x {self.source_length} to {self.target_length}, beam {self.beam}"

    def dictionary(self) -> Dictionary:
        """As large as the vocabulary."""
        dictionary = Dictionary()
        for i in range(self.size.vocab_size - len(dictionary)):
            dictionary.add_symbol(f"word{i}")
        return dictionary

    def sample(self) -> dict[str, Any]:
        """A batch as fairseq's tasks make them."""
        dictionary = self.dictionary()
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.source_length)
        tokens = torch.randint(dictionary.nspecial, len(dictionary), shape, generator=generator)
        tokens[:, -1] = dictionary.eos()
        lengths = torch.full((self.batch,), self.source_length)
        return {
            "net_input": {"src_tokens": tokens.to(self.device), "src_lengths": lengths.to(self.device)},
            "id": torch.arange(self.batch, device=self.device),
        }


class OfficialEncoder(FairseqEncoder):
    """TorchScale's encoder behind fairseq's interface."""

    def __init__(self, dictionary: Dictionary, encoder: nn.Module):
        super().__init__(dictionary)
        self.encoder = encoder

    def forward(self, src_tokens: Tensor, src_lengths: Tensor) -> dict[str, Any]:
        return self.encoder(src_tokens, encoder_padding_mask=src_tokens.eq(self.dictionary.pad()))

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        return {name: encoder_out[name].index_select(0, new_order) for name in ("encoder_out", "encoder_padding_mask")}


class OfficialDecoder(FairseqIncrementalDecoder):
    """TorchScale's decoder behind fairseq's interface."""

    def __init__(self, dictionary: Dictionary, decoder: Any):
        super().__init__(dictionary)
        self.decoder = decoder
        self._max_positions: int = decoder.embed_positions.max_positions
        self.adaptive_softmax = None  # asked for by FairseqDecoder.get_normalized_probs

    def forward(
        self, prev_output_tokens: Tensor, encoder_out: dict[str, Any], incremental_state: dict[Any, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        padding_mask = prev_output_tokens.eq(self.dictionary.pad())
        return self.decoder(
            prev_output_tokens, padding_mask, encoder_out=encoder_out, incremental_state=incremental_state
        )

    def reorder_incremental_state_scripting(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        for layer in incremental_state.values():
            for name, value in layer.items():
                layer[name] = value.index_select(0, new_order)

    def max_positions(self) -> int:
        return self._max_positions


def compare_generation(sentences: Sentences, sides: list[str], *, repeats: int) -> tuple[list[Row], list[str]]:
    """Check that ours and the official model find the same hypotheses, then time all sides.

    Args:
        sentences: what to run.
        sides: out of OFFICIAL (after ``load_official``), OURS and STOCK.
        repeats: timed batches per side.

    Returns:
        The table's rows, and a sentence about agreement.

    Raises:
        DisagreementError: hypotheses differ; nothing was timed.
    """
    plugin.register()
    models = build_models(sentences, sides)
    searches = {side: _search(sentences, model) for side, model in models.items()}
    notes = []
    if OFFICIAL in sides and OURS in sides:
        notes.append(check_agreement(sentences, searches[OURS](), searches[OFFICIAL]()))
    seconds = time_in_turns(searches, warmups=1, repeats=repeats)
    return [Row(sentences.title, side, seconds[side], items=sentences.batch, unit="sentences") for side in sides], notes


def build_models(sentences: Sentences, sides: list[str]) -> dict[str, BaseFairseqModel]:
    """The sides' models, ours on the official weights where both are asked for."""
    torch.manual_seed(sentences.seed)
    makers = {OFFICIAL: _official, OURS: _ours, STOCK: _stock}
    models = {side: makers[side](sentences).to(sentences.device) for side in sides}
    if OFFICIAL in sides and OURS in sides:
        official = models[OFFICIAL]
        weights = {f"encoder.{name}": value for name, value in official.encoder.encoder.state_dict().items()}
        weights |= {f"decoder.{name}": value for name, value in official.decoder.decoder.state_dict().items()}
        models[OURS].load_state_dict(weights)
    return models


def _options(sentences: Sentences) -> dict[str, Any]:
    """Options that all three spell alike."""
    size = sentences.size
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": size.layers,
            "embed_dim": size.width,
            "attention_heads": size.heads,
            "ffn_embed_dim": size.ffn_width,
            "normalize_before": True,
            "embed_path": None,
        }.items()
    }
    positions = {"max_source_positions": sentences.source_length, "max_target_positions": sentences.target_length + 2}
    return {**sides, **positions, "activation_fn": "relu", "no_scale_embedding": False}


def _ours(sentences: Sentences) -> BaseFairseqModel:
    return _registered("mt_base", sentences, subln=True)


def _stock(sentences: Sentences) -> BaseFairseqModel:
    return _registered("transformer", sentences)


def _registered(architecture: str, sentences: Sentences, **options: Any) -> BaseFairseqModel:
    dictionary = sentences.dictionary()
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return MODEL_REGISTRY[architecture].build_model(Namespace(**_options(sentences), **options), task)


def _official(sentences: Sentences) -> BaseFairseqModel:
    from torchscale.architecture import config, encoder_decoder
    from torchscale.component import embedding

    dictionary, size = sentences.dictionary(), sentences.size
    tokens = [embedding.TextEmbedding(len(dictionary), size.width, dictionary.pad()) for _ in range(2)]
    positions = [PositionalEmbedding(1024, size.width, dictionary.pad()) for _ in range(2)]
    model = encoder_decoder.EncoderDecoder(
        config.EncoderDecoderConfig(**_options(sentences), vocab_size=len(dictionary), subln=True),
        tokens[0],
        positions[0],
        tokens[1],
        positions[1],
    )
    return FairseqEncoderDecoderModel(
        OfficialEncoder(dictionary, model.encoder), OfficialDecoder(dictionary, model.decoder)
    )


def _search(sentences: Sentences, model: BaseFairseqModel) -> Callable[[], list[list[dict[str, Tensor]]]]:
    """A function that translates the sample and returns its hypotheses, best first."""
    model.eval()
    model.make_generation_fast_(need_attn=False)
    generator = SequenceGenerator(
        [model],
        sentences.dictionary(),
        beam_size=sentences.beam,
        max_len_b=sentences.target_length,
        min_len=sentences.target_length,
    )
    sample = sentences.sample()
    return lambda: generator.generate([model], sample)


def check_agreement(
    sentences: Sentences, ours: list[list[dict[str, Tensor]]], official: list[list[dict[str, Tensor]]]
) -> str:
    """Compare the hypotheses of each sentence, tokens and scores; return what was found.

    Raises:
        DisagreementError: they differ.
    """
    pairs = [pair for two in zip(ours, official, strict=True) for pair in zip(*two, strict=True)]
    scores = max((a["score"] - b["score"]).abs().item() for a, b in pairs)
    differing = sum(not torch.equal(a["tokens"], b["tokens"]) for a, b in pairs)
    found = (
        f"{differing} of {len(pairs)} hypotheses differ in tokens, scores by up to {scores:.1g} (allowed {ALLOWED:.0e})"
    )
    if differing or not scores <= ALLOWED:
        raise DisagreementError(
            f"{sentences.title}: ours and official disagree: {found}. If the scores agree it may be a tie between "
            "hypotheses, which rounding decides: try another --seed."
        )
    return f"{sentences.title}: ours and official agree: {found}."
