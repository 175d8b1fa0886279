"""Speech: convolutions and masks for uneven lengths, filterbank features, resampling, and scores of CTC prefixes."""

import itertools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_close
from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.retnet import RetNetDecoder
from torchscale_fairseq.core.architectures.speech import SpeechEncoder
from torchscale_fairseq.core.config import LongNetSpeechConfig, RetNetSpeechConfig, SpeechConfig
from torchscale_fairseq.core.layers.subsampler import ConvolutionalSubsampler
from torchscale_fairseq.core.ops.ctc_prefix import BLANK, Prefixes, masked_log_probs
from torchscale_fairseq.core.ops.filterbank import frame_count, kaldi_filterbank
from torchscale_fairseq.core.ops.resampling import resample

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "ctc": True,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "encoder_layers": 2,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 24,
    "decoder_attention_heads": 2,
    "decoder_layers": 2,
    "conv_channels": 12,
    "input_features": 8,
}
LONGNET: dict[str, Any] = {"segment_length": "[4,8]", "dilated_ratio": "[1,2]", "xpos_rel_pos": True}
RETENTION: dict[str, Any] = {"decoder_value_embed_dim": 24, "decoder_retention_heads": 2}
CONFIGS = {
    "s2t_magneto": SpeechConfig(**SIZES),
    "s2t_bias": SpeechConfig(**SIZES, rel_pos_buckets=8, max_rel_pos=16),
    "s2t_longnet": LongNetSpeechConfig(**SIZES, **LONGNET),
    "s2t_retnet": RetNetSpeechConfig(**SIZES, **RETENTION),
}
LENGTHS = torch.tensor([61, 34, 7, 1])


def encoder_of(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return SpeechEncoder(config).double().eval()


def speech(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kernel_sizes", [(5, 5), (3,), (7, 3, 5)])
def test_a_row_is_shortened_as_if_it_were_alone(kernel_sizes: tuple[int, ...]) -> None:
    """What stands behind the end of a row is not read, and padding between the convolutions is zero."""
    torch.manual_seed(0)
    subsampler = ConvolutionalSubsampler(8, 12, 16, kernel_sizes).double()
    features = speech(len(LENGTHS), int(LENGTHS.max()), 8)
    together, lengths = subsampler(features, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, _ = subsampler(features[row : row + 1, :length], torch.tensor([length]))
        assert alone.size(1) == lengths[row] == -(-length // 2 ** len(kernel_sizes))
        assert_close(together[row, : alone.size(1)], alone[0], "float64")


@pytest.mark.parametrize("kernel_sizes", [(5, 5), (5, 5, 5)])
def test_shortened_features_begin_with_the_scale_of_token_embeddings(kernel_sizes: tuple[int, ...]) -> None:
    """Their root mean square is 1 / sqrt(width), up to chance; positions and layers drown smaller ones."""
    torch.manual_seed(0)
    channels, width = 80, 256
    subsampler = ConvolutionalSubsampler(channels, 128, width, kernel_sizes).double()
    x, _ = subsampler(speech(4, 200, channels), torch.full((4,), 200))
    assert 0.8 < x.square().mean().mul(width).sqrt() < 1.25


@pytest.mark.parametrize("name", CONFIGS)
def test_an_utterance_is_encoded_as_if_it_were_alone(name: str) -> None:
    encoder = encoder_of(CONFIGS[name])
    features = speech(len(LENGTHS), int(LENGTHS.max()), 8)
    together = encoder(features, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = encoder(features[row : row + 1, :length], torch.tensor([length]))
        tokens = alone["encoder_out"].size(1)
        assert together["encoder_padding_mask"][row].tolist() == [
            place >= tokens for place in range(together["encoder_out"].size(1))
        ]
        assert_close(together["encoder_out"][row, :tokens], alone["encoder_out"][0], "float64")
        assert_close(together["ctc_log_probs"][row, :tokens], alone["ctc_log_probs"][0], "float32")


@pytest.mark.parametrize("name", ["s2t_magneto", "s2t_longnet"])
def test_one_second_next_to_thirty(name: str) -> None:
    encoder = encoder_of(CONFIGS[name])
    features = speech(2, 3000, 8)
    together = encoder(features, torch.tensor([3000, 100]))["encoder_out"][1, :25]
    assert_close(together, encoder(features[1:, :100], torch.tensor([100]))["encoder_out"][0], "float64")


def test_raw_audio_is_encoded_as_if_it_were_alone() -> None:
    config = SpeechConfig(**{**SIZES, "sample_rate": 8000})
    encoder = encoder_of(config)
    waveforms, lengths = speech(2, 4000), torch.tensor([4000, 1723])
    together = encoder(waveforms, lengths)
    alone = encoder(waveforms[1:, :1723], lengths[1:])
    tokens = config.shortened(config.frames(1723))
    assert alone["encoder_out"].size(1) == tokens
    assert_close(together["encoder_out"][1, :tokens].float(), alone["encoder_out"][0].float(), "float32")


@pytest.mark.parametrize("name", CONFIGS)
def test_step_by_step_equals_the_full_forward_pass(name: str) -> None:
    config = CONFIGS[name]
    memory = encoder_of(config)(speech(2, 40, 8), torch.tensor([40, 21]))
    build: Any = RetNetDecoder if isinstance(config, RetNetSpeechConfig) else Decoder
    decoder = build(config, is_encoder_decoder=True).double().eval()
    tokens = torch.randint(4, 11, (2, 9), generator=torch.Generator().manual_seed(2))
    expected, _ = decoder(tokens, encoder_out=memory)
    state: dict[Any, Any] = {}
    steps = [decoder(tokens[:, :end], encoder_out=memory, incremental_state=state)[0] for end in range(1, 10)]
    assert_close(torch.cat(steps, 1), expected, "float64")


def test_minutes_of_audio_take_memory_linear_in_their_length() -> None:
    """The scores that dilated attention keeps for the backward pass: twice as much audio, twice as many bytes."""
    encoder = encoder_of(LongNetSpeechConfig(**SIZES, **LONGNET)).train()

    def kept_bytes(frames: int) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t, lambda t: t
        ):
            encoder(speech(1, frames, 8), torch.tensor([frames]))
        return sum(sizes.values())

    assert kept_bytes(6400) < 2.2 * kept_bytes(3200)


def test_filterbank_is_kaldis() -> None:
    """Some of the values that kaldi-native-fbank 1.23 computes without dither, printed to four places."""
    places = torch.arange(4000)
    noise = ((places**3 * 7919 + places * 31) % 20011 - 10005).float()
    features = kaldi_filterbank(noise, 16000)
    assert features.shape == (frame_count(4000, 16000), 80) == (23, 80)
    expected = torch.tensor(
        [
            [16.0501, 16.6701, 19.4135, 22.4826, 26.2537],
            [13.9393, 16.8346, 18.7169, 23.2575, 26.423],
            [14.597, 16.597, 18.2843, 24.2197, 26.0305],
        ]
    )
    assert_close(features[[0, 11, 22]][:, [0, 5, 20, 50, 79]], expected, "printed")


def test_a_waveform_shorter_than_a_window_has_no_frames() -> None:
    assert kaldi_filterbank(torch.zeros(399), 16000).shape == (0, 80)
    assert frame_count(399, 16000) == 0 and frame_count(400, 16000) == 1


@pytest.mark.parametrize(("rate", "new_rate"), [(8000, 16000), (44100, 16000), (16000, 14400)])
def test_resampling_keeps_a_tone(rate: int, new_rate: int) -> None:
    """A tone of 1 kHz, away from the ends, to 60 dB."""
    tone, expected = (torch.sin(2 * math.pi * 1000 * torch.arange(r // 2) / r) for r in (rate, new_rate))
    result = resample(tone.double(), rate, new_rate)
    assert result.shape == expected.shape
    assert (result - expected)[200:-200].abs().max() < 1e-3


def test_prefix_scores_are_sums_over_alignments() -> None:
    """By enumeration of all paths of five frames, also where a row is shorter and where a label repeats."""
    frames, labels = 5, 3
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    log_probs = masked_log_probs(speech(2, frames, labels).float(), padding)
    sums = []
    for row in log_probs.double():
        by_labels: dict[tuple[int, ...], float] = defaultdict(float)
        for path in itertools.product(range(labels), repeat=frames):
            collapsed = tuple(label for label, _ in itertools.groupby(path) if label != BLANK)
            by_labels[collapsed] += math.exp(sum(float(row[t, label]) for t, label in enumerate(path)))
        sums.append(by_labels)
    for prefix in [(1,), (1, 1), (1, 2, 1), (2, 2)]:
        prefixes = Prefixes.empty(log_probs, rows=4)  # two prefixes per utterance
        for label in prefix:
            scores = prefixes.next_scores(log_probs)
            prefixes = prefixes.extend(log_probs, torch.full((4,), label), scores)
        for row in range(4):
            total = sum(p for ended, p in sums[row // 2].items() if ended[: len(prefix)] == prefix)
            assert_close(prefixes.score[row], torch.tensor(math.log(total)), "float32")
