"""Speech data: corpora in their layouts, features in zip files, what cannot be used, and resuming."""

import argparse
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sentencepiece")
pytest.importorskip("soundfile")

import soundfile

from tests.helpers import assert_close
from tests.plugin.spoken import RATE, prepare, say, write_corpus
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.filterbank import kaldi_filterbank
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.speech import features
from torchscale_fairseq.data.speech.audio import FULL_SCALE, read_audio
from torchscale_fairseq.data.speech.corpora import read_corpus
from torchscale_fairseq.tools.command import make_parser
from torchscale_fairseq.tools.data import prepare_speech, speak_text

TONE = say(["low"], 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("spoken") / "corpus")


def test_features_are_where_the_manifest_says(corpus: Path, tmp_path: Path) -> None:
    data = prepare(corpus, tmp_path / "data")
    line = (data / "test.tsv").read_text().splitlines()[1].split("\t")
    archive, offset, length = line[1].split(":")
    with open(data / archive, "rb") as file:
        file.seek(int(offset))
        (tmp_path / "one.npy").write_bytes(file.read(int(length)))
    waveform, rate = read_audio(corpus / "test0.wav")
    expected = kaldi_filterbank(waveform * FULL_SCALE, rate)
    assert_close(torch.from_numpy(np.load(tmp_path / "one.npy")), expected, "float32")
    assert int(line[2]) == len(expected)
    assert all(i.compress_type == zipfile.ZIP_STORED for i in zipfile.ZipFile(data / archive).infolist())


def test_a_call_resumes_and_refuses_other_options(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepare(corpus, tmp_path / "data")
    archives = {path: path.stat().st_mtime_ns for path in data.glob("features/*.zip")}
    (data / "config.yaml").write_text("changed: by hand\n")
    (data / "features/test.00000.tsv").unlink()
    prepare(corpus, data)
    again = {path.name for path, time in archives.items() if path.stat().st_mtime_ns != time}
    assert again == {"test.00000.zip"}
    assert (data / "config.yaml").read_text() == "changed: by hand\n"
    with pytest.raises(InputError, match="was begun from other speech or with other options; remove it"):
        prepare(corpus, data, "--keep-audio")


def test_training_without_specaugment(corpus: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    data = prepare(corpus, tmp_path / "data", "--keep-audio", "--no-specaugment")
    config = yaml.safe_load((data / "config.yaml").read_text())
    assert config["feature_transforms"]["_train"] == ["utterance_cmvn"]


def threads(chunk: features.Chunk) -> list[str]:
    return [f"{chunk.archive}: {torch.get_num_threads()}"]


def test_each_process_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "store", threads)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        options = argparse.Namespace(keep_audio=False, workers=2)
        chunks = [features.Chunk(Path(name), Path(), (), RATE, 80, False) for name in "ab"]
        assert prepare_speech.run_chunks(chunks, "train", options) == ["a: 1", "b: 1"]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"RIFF, but no more"), r"train7.wav is no audio that libsndfile reads"),
        (lambda path: soundfile.write(path, TONE[:0], RATE), r"train7.wav has no samples"),
        (lambda path: soundfile.write(path, TONE[:300], RATE), r"train7.wav has 300 samples, less than the 400"),
        (lambda path: path.unlink(), r"train7.wav: there is no such file"),
    ],
    ids=["broken", "empty", "short", "missing"],
)
def test_what_cannot_be_used_is_named(spoil, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    spoil(corpus / "train7.wav")
    with pytest.raises(DataError, match=f"{message}.*--skip-invalid leaves out what cannot be used"):
        prepare(corpus, tmp_path / "data")
    prepare(corpus, tmp_path / "rest", "--skip-invalid")
    output = capsys.readouterr().out
    assert "left out: " in output and "train7.wav" in output and "47 train" in output


def test_kept_audio_must_have_the_rate(corpus: Path, tmp_path: Path) -> None:
    data = prepare(corpus, tmp_path / "data", "--keep-audio")
    line = (data / "train.tsv").read_text().splitlines()[1].split("\t")
    assert line[1] == str((corpus / "train0.wav").resolve())
    with pytest.raises(DataError, match=r"has 16000 samples per second, and --sample-rate is 8000; give --sample-rate"):
        prepare(corpus, tmp_path / "other", "--keep-audio", "--sample-rate", "8000")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_kinds_of_audio(suffix: str, tmp_path: Path) -> None:
    """Two channels become their mean; lossy kinds keep a tone to 5 %."""
    if suffix.upper() not in soundfile.available_formats():
        pytest.skip(f"this libsndfile reads no {suffix}")
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([TONE, TONE], 1), RATE)
    waveform, rate = read_audio(tmp_path / f"a.{suffix}")
    assert rate == RATE
    middle = waveform[1000:2000].double()
    power = float((torch.from_numpy(TONE) ** 2).mean())
    assert float((middle**2).mean()) == pytest.approx(power, rel=0.1)


def test_librispeech(tmp_path: Path) -> None:
    chapter = tmp_path / "19" / "198"
    chapter.mkdir(parents=True)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    first, second = read_corpus(tmp_path, None)
    assert first == ("19-198-0000", chapter / "19-198-0000.flac", "NORTHANGER ABBEY", "19", 0.0, None)
    assert second.text == "THIS LITTLE WORK"
    with pytest.raises(DataError, match="has English text alone, and --text is de; leave --text out"):
        read_corpus(tmp_path, "de")


def test_common_voice(tmp_path: Path) -> None:
    table = 'client_id\tpath\tsentence\n7f\tone.mp3\tHe said "no".\n'
    (tmp_path / "train.tsv").write_text(table)
    (only,) = read_corpus(tmp_path / "train.tsv", None)
    assert only == ("train-0", tmp_path / "clips" / "one.mp3", 'He said "no".', "7f", 0.0, None)


def test_must_c(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt/train.yaml").write_text(
        "- {duration: 3.5, offset: 16.08, speaker_id: spk.1, wav: ted_1.wav}\n"
        "- {duration: 2.0, offset: 20.5, speaker_id: spk.1, wav: ted_1.wav}\n"
    )
    (tmp_path / "txt/train.de").write_text("Hallo.\nGut.\n")
    (tmp_path / "txt/train.en").write_text("Hello.\nGood.\n")
    first, second = read_corpus(tmp_path, "de")
    assert first == ("ted_1_0", tmp_path / "wav" / "ted_1.wav", "Hallo.", "spk.1", 16.08, 3.5)
    assert second.text == "Gut."
    with pytest.raises(DataError, match="has text in de, en; name one of them with --text"):
        read_corpus(tmp_path, None)


def test_parts_of_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.arange(16000) / 32768, RATE, subtype="PCM_16")
    waveform, _ = read_audio(tmp_path / "a.wav", start=0.25, seconds=0.5)
    assert len(waveform) == 8000 and float(waveform[0]) * 32768 == pytest.approx(4000, abs=1)


def test_a_table_of_spoken_lines_has_the_text_to_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to the lines themselves, which --text spoken reads."""
    monkeypatch.setattr(speak_text.shutil, "which", lambda name: name)
    monkeypatch.setattr(speak_text, "speak", lambda reading, path: path.write_bytes(b""))
    for name, lines in (("a.de", "Eins\nZwei\n3\n"), ("a.en", "One\nTwo\n3\n")):
        (tmp_path / name).write_text(lines)
    files = ["speak-text", str(tmp_path / "a.de"), "--translations", str(tmp_path / "a.en"), "--language", "de"]
    words = ["data", *files, "--without-digits", "--output", str(tmp_path / "out"), "--name", "train"]
    options = make_parser().parse_args(words)
    options.run(options)
    table = tmp_path / "out/train.tsv"
    assert [utterance.text for utterance in read_corpus(table, None)] == ["One", "Two"]
    assert [utterance.text for utterance in read_corpus(table, "spoken")] == ["Eins", "Zwei"]


def test_no_layout_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("file\twords\nx\ty\n")
    with pytest.raises(DataError, match=r"has no column audio, but file, words; name a table with the columns"):
        read_corpus(tmp_path / "a.tsv", None)
    with pytest.raises(DataError, match="is a folder of no layout that is known"):
        read_corpus(tmp_path, None)
    with pytest.raises(DataError, match="does not exist"):
        read_corpus(tmp_path / "b", None)
