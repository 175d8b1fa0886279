"""Stock's path from audio files to batches: each failure on stock fairseq, and its absence with the plugin."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")
pytest.importorskip("soundfile")

import soundfile
from fairseq.data import Dictionary
from fairseq.data.audio import audio_utils
from fairseq.data.audio.feature_transforms.specaugment import SpecAugmentTransform
from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDataset, SpeechToTextDatasetCreator
from fairseq.data.audio.waveform_transforms import CompositeAudioWaveformTransform
from fairseq.scoring.wer import WerScorer, WerScorerConfig
from fairseq.tasks.speech_to_text import SpeechToTextTask

from tests.fairseq_cli import run_beside_fairseq
from tests.helpers import assert_close
from torchscale_fairseq import plugin
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.filterbank import kaldi_filterbank
from torchscale_fairseq.hooks.stock.speech import edit_distance

plugin.register()

RATE = 16000
NOISE = 0.1 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)


@pytest.fixture
def wav(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "a.wav", NOISE, RATE, subtype="FLOAT")
    return str(tmp_path / "a.wav")


def test_stock_fails(wav: str) -> None:
    folder, cut = Path(wav).parent, f"{wav}.zip:90:20"
    (folder / "train.tsv").write_text("id\taudio\nu1\ta.wav\n")
    Path(f"{wav}.zip").write_bytes(b"PK")
    code = f"""
        import numpy as np
        from types import SimpleNamespace
        from fairseq.data.audio.audio_utils import get_fbank, get_waveform, get_features_or_waveform
        from fairseq.data.audio.feature_transforms.specaugment import SpecAugmentTransform
        from fairseq.data.audio.speech_to_text_dataset import SpeechToTextDatasetCreator
        from fairseq.scoring.wer import WerScorer, WerScorerConfig

        for attempt in (
            lambda: get_waveform({wav!r}),
            lambda: get_features_or_waveform("a.mp3"),
            lambda: SpecAugmentTransform(time_warp_w=5)(np.zeros((40, 8), np.float32)),
            lambda: WerScorer(WerScorerConfig()),
            lambda: SpeechToTextDatasetCreator._from_tsv(
                {str(folder)!r}, SimpleNamespace(audio_root=""), "train", *[None] * 6
            ),
            lambda: get_features_or_waveform({cut!r}),
        ):
            try:
                attempt()
            except Exception as error:
                print("failed:", error)
    """
    output = run_beside_fairseq(code, plugin=False).check().output
    assert output.count("failed: ") == 6, output
    assert "install torchaudio" in output and "install editdistance" in output
    assert "failed: 'n_frames'" in output and "failed: index out of range" in output


def test_audio_is_read_and_its_features_are_kaldis(wav: str) -> None:
    waveform, rate = audio_utils.get_waveform(wav, always_2d=False)
    assert rate == RATE and np.array_equal(waveform, NOISE)
    features = torch.from_numpy(audio_utils.get_features_or_waveform(wav))
    assert_close(features, kaldi_filterbank(torch.from_numpy(NOISE) * 2**15, RATE), "float32")


def test_waveforms_are_converted() -> None:
    both = np.stack([NOISE, -0.5 * NOISE])
    mono, rate = audio_utils.convert_waveform(both, RATE, to_mono=True, to_sample_rate=8000)
    assert rate == 8000 and mono.shape == (1, 2000)
    loud, _ = audio_utils.convert_waveform(both, RATE, normalize_volume=True)
    assert np.abs(loud).max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (NOISE, 8000, r"a\.wav has 8000 samples per second, and the data 16000 \(use_sample_rate in its YAML file\)"),
        (
            NOISE[:0],
            RATE,
            r"a\.wav has 0 samples, less than the 400 of a frame of 25 ms; mend the file",
        ),
        (None, RATE, r"a\.wav: there is no such file; mend the file, or leave it out"),
    ],
    ids=["rate", "empty", "missing"],
)
def test_unusable_audio_is_named(samples: np.ndarray | None, rate: int, message: str, tmp_path: Path) -> None:
    if samples is not None:
        soundfile.write(tmp_path / "a.wav", samples, rate)
    with pytest.raises(InputError, match=message):
        audio_utils.get_features_or_waveform(str(tmp_path / "a.wav"), use_sample_rate=RATE)


def test_empty_features_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 80), np.float32))
    with pytest.raises(InputError, match=r"a\.npy has length zero; mend the file, or leave it out"):
        audio_utils.get_features_or_waveform(str(tmp_path / "a.npy"))


def test_features_that_are_cut_off_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"a\.zip:90:20 holds no features that numpy reads .*; make them again"):
        audio_utils.get_features_or_waveform(f"{tmp_path}/a.zip:90:20")
    with pytest.raises(InputError, match=r"b\.zip: there is no such file; mend the file, or leave it out"):
        audio_utils.get_features_or_waveform(f"{tmp_path}/b.zip:90:20")


def test_features_of_another_width_are_named(wav: str) -> None:
    words = Dictionary()
    words.add_symbol("a")
    data = manifest(["a"], words, wav)
    data.cfg.input_feat_per_channel = 40
    with pytest.raises(InputError, match=r"a\.wav has 80 features per frame, and the data 40 \(input_feat_per_channel"):
        data[0]


def test_what_a_directory_lacks_is_named(tmp_path: Path) -> None:
    options = SimpleNamespace(data=str(tmp_path), config_yaml="config.yaml")
    with pytest.raises(InputError, match=r"config\.yaml not found; torchscale-fairseq data prepare-speech makes"):
        SpeechToTextTask.setup_task(options)
    (tmp_path / "config.yaml").write_text("vocab_filename: words.txt\n")
    with pytest.raises(InputError, match=r"Dict not found: .*words\.txt; torchscale-fairseq data prepare-speech makes"):
        SpeechToTextTask.setup_task(options)
    (tmp_path / "dev.tsv").write_text("id\taudio\tframes\ttgt_text\nu1\ta.wav\t1\ta\n")
    load = SpeechToTextDatasetCreator._load_samples_from_tsv
    with pytest.raises(InputError, match=r"train\.tsv, the manifest of .* train, does not exist; .* has dev; torch"):
        load(str(tmp_path), "train")
    with pytest.raises(InputError, match=r"dev\.tsv has no column n_frames, but id, audio, frames, tgt_text; torch"):
        load(str(tmp_path), "dev")


def test_time_is_warped() -> None:
    """A ramp stays one between its ends, and reaches the middle at another time."""
    ramp = np.repeat(np.arange(40, dtype=np.float32)[:, None], 8, 1)
    np.random.seed(1)
    warped = SpecAugmentTransform(time_warp_w=10)(ramp)
    assert warped.shape == ramp.shape and (np.diff(warped, axis=0) >= 0).all()
    assert warped[0, 0] < 1 and warped[-1, 0] > 38 and not np.array_equal(warped, ramp)


def test_speed_perturbation() -> None:
    """At 1.1 times the speed, 1000 samples become 910."""

    def speed(factor: float) -> Any:
        settings = {"waveform_transforms": ["speed_perturbation"], "speed_perturbation": {"factors": [factor]}}
        return CompositeAudioWaveformTransform.from_config_dict(settings)

    transform = speed(1.1)
    faster, rate = transform(NOISE[None, :1000], RATE)
    assert rate == RATE and faster.shape == (1, 910)
    with pytest.raises(InputError, match=r"has factors \[11\]; give speeds from 0.5 to 2"):
        speed(11)


def test_word_error_rate_without_a_package() -> None:
    scorer = WerScorer(WerScorerConfig())
    scorer.add_string("a cat sat here", "the cat here now")
    assert scorer.score() == 75.0
    assert [edit_distance(*pair) for pair in (("", "ab"), ("kitten", "sitting"), ("abc", "abc"))] == [2, 3, 0]


def manifest(texts: list[str], words: Dictionary, path: str) -> SpeechToTextDataset:
    """A training split of one file, read with SpecAugment."""
    augment = {"feature_transforms": ["specaugment"], "specaugment": {"freq_mask_N": 1, "freq_mask_F": 40}}
    config = SimpleNamespace(
        prepend_tgt_lang_tag=False,
        prepend_bos_and_append_tgt_lang_tag=False,
        shuffle=False,
        use_audio_input=False,
        input_channels=1,
        input_feat_per_channel=80,
        use_sample_rate=RATE,
        get_feature_transforms=lambda *_: augment,
        get_waveform_transforms=lambda *_: {},
        get_dataset_transforms=lambda *_: {"dataset_transforms": []},
    )
    size = len(texts)
    return SpeechToTextDataset("train", True, config, [path] * size, [23] * size, tgt_texts=texts, tgt_dict=words)


def test_augmentation_is_drawn_by_epoch(wav: str) -> None:
    """Whatever was drawn before; each epoch and utterance has its own."""
    words = Dictionary()
    words.add_symbol("a")
    data = manifest(["a", "a"], words, wav)
    first, other = data[0].source, data[1].source
    np.random.seed(7)
    assert torch.equal(data[0].source, first) and not torch.equal(first, other)
    data.set_epoch(2)
    assert not torch.equal(data[0].source, first)


def test_a_dictionary_of_other_data_is_named(wav: str) -> None:
    words = Dictionary()
    words.add_symbol("a")
    with pytest.raises(InputError, match="2 of 3 tokens of the train split, such as 'b', are not in the dictionary"):
        manifest(["a b", "b"], words, wav)
