"""fairseq's speech_to_text task from the command line: training, decoding from features and audio, resuming."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")
pytest.importorskip("sentencepiece")
pytest.importorskip("soundfile")

from tests.fairseq_cli import Finished, run_fairseq, run_processes
from tests.plugin.spoken import SPLITS, prepare, training, write_corpus
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.stock.speech import edit_distance
from torchscale_fairseq.models.speech import SpeechModel
from torchscale_fairseq.tools.command import make_parser

pytestmark = pytest.mark.family


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("spoken") / "corpus")


@pytest.fixture(scope="module")
def data(corpus: Path) -> Path:
    """With the audio itself, so that features are computed and speeds drawn while training reads."""
    return prepare(corpus, corpus.parent / "data", "--keep-audio")


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A model that has learnt the tones."""
    save = data.parent / "run"
    run_fairseq("train", training(data, save, "--max-epoch", "25", "--validate-interval", "25")).check()
    return save


def generate(data: Path, run: Path, *flags: str) -> Finished:
    words = [data, "--task", "speech_to_text", "--path", run / "checkpoint_last.pt", "--gen-subset", "test", "--cpu"]
    return run_fairseq("generate", [*words, "--max-tokens", "4000", "--num-workers", "0", *flags]).check()


def texts(done: Finished, mark: str) -> dict[int, str]:
    """Lines of fairseq-generate, T for references and D for hypotheses, by sentence."""
    found = re.findall(rf"^{mark}-(\d+)\t(.*)", done.stdout, re.MULTILINE)
    return {int(number): rest.split("\t")[-1] for number, rest in found}


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_word_error_rate_is_that_of_the_hypotheses(share: float, data: Path, run: Path) -> None:
    """By decoder and CTC, and by CTC alone. A model that has learnt nothing has an error per word."""
    done = generate(data, run, "--scoring", "wer", "--model-overrides", str({"ctc_decoding_weight": share}))
    references, hypotheses = texts(done, "T"), texts(done, "D")
    assert len(references) == SPLITS["test"]
    pairs = [(references[n].split(), hypotheses[n].split()) for n in references]
    rate = 100 * sum(edit_distance(r, h) for r, h in pairs) / sum(len(r) for r, _ in pairs)
    assert float(re.search(r"WER: ([\d.]+)", done.output)[1]) == pytest.approx(rate, abs=0.01)
    assert rate < 90


def test_interactive_reads_audio_files(corpus: Path, data: Path, run: Path) -> None:
    expected = texts(generate(data, run), "D")
    files = "\n".join(str(corpus / f"test{number}.wav") for number in range(3))
    words = [data, "--task", "speech_to_text", "--path", run / "checkpoint_last.pt", "--cpu"]
    done = run_fairseq("interactive", words, stdin=files).check()
    assert texts(done, "D") == {number: expected[number] for number in range(3)}


def test_from_pretrained(corpus: Path, data: Path, run: Path, tmp_path: Path) -> None:
    expected = texts(generate(data, run), "D")
    model = SpeechModel.from_pretrained(str(run), "checkpoint_last.pt")
    files = [corpus / f"test{number}.wav" for number in range(3)]
    assert model.transcribe(files) == [expected[number] for number in range(3)]
    assert model.transcribe(str(files[1]), beam=5) == expected[1]
    (tmp_path / "none.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"none.wav"):
        model.transcribe(tmp_path / "none.wav")


def test_averaged_checkpoints_recognise(data: Path, run: Path, tmp_path: Path) -> None:
    """Two checkpoints whose weights lie on either side of a model's: their average is that model."""
    checkpoint = load_checkpoint(run / "checkpoint_last.pt")
    for number, sign in enumerate((1, -1), 1):
        torch.manual_seed(0)
        moved = {name: value + sign * torch.rand_like(value) for name, value in checkpoint["model"].items()}
        torch.save({**checkpoint, "model": moved}, tmp_path / f"checkpoint{number}.pt")
    words = ["average-checkpoints", "--inputs", str(tmp_path), "--num-epoch-checkpoints", "2"]
    options = make_parser().parse_args([*words, "--output", str(tmp_path / "checkpoint_last.pt")])
    options.run(options)
    assert texts(generate(data, tmp_path), "D") == texts(generate(data, run), "D")


def test_validate(data: Path, run: Path) -> None:
    words = [data, "--task", "speech_to_text", "--path", run / "checkpoint_last.pt", "--cpu", "--max-tokens", "4000"]
    assert "ctc_loss" in run_fairseq("validate", [*words, "--num-workers", "0"]).check().output


def test_training_resumes_exactly(data: Path, tmp_path: Path) -> None:
    """Also what SpecAugment and speed perturbation draw."""

    def train(save: str, updates: int) -> dict[str, torch.Tensor]:
        words = training(data, tmp_path / save, "--max-update", str(updates), "--save-interval-updates", "1")
        run_fairseq("train", [*words, "--disable-validation", "--keep-interval-updates", "1"]).check()
        return load_checkpoint(tmp_path / save / "checkpoint_last.pt")["model"]

    train("parts", 7)
    resumed, whole = train("parts", 12), train("whole", 12)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("s2t_deepnorm_small", ["--rel-pos-buckets", "8", "--max-rel-pos", "32"]),
        ("s2t_longnet_small", ["--segment-length", "[8,16]", "--dilated-ratio", "[1,2]"]),
        ("s2t_retnet_small", ["--decoder-value-embed-dim", "64", "--decoder-retention-heads", "2"]),
        ("s2t_swiglu_small", []),
        (
            "s2t_xmoe_small",
            ["--moe-freq", "1", "--moe-expert-count", "4", "--criterion", "moe_label_smoothed_cross_entropy_with_ctc"],
        ),
        ("s2t_magneto_small", ["--bf16"]),
        ("s2t_magneto_small", ["--fp16"]),
        ("s2t_magneto_small", ["--criterion", "label_smoothed_cross_entropy"]),
    ],
    ids=["deepnorm", "longnet", "retnet", "swiglu", "xmoe", "bf16", "fp16", "without-ctc"],
)
def test_architectures_and_precisions(arch: str, flags: list[str], data: Path, tmp_path: Path) -> None:
    words = training(data, tmp_path, *flags, "--max-epoch", "2", arch=arch)
    if "--criterion" in flags:
        place = words.index("--criterion")
        del words[place : place + (2 if "with_ctc" in flags[-1] else 4)]
    run_fairseq("train", words).check()
    assert len(texts(generate(data, tmp_path, "--beam", "2"), "D")) == SPLITS["test"]


@pytest.mark.slow
def test_raw_audio(data: Path, tmp_path: Path) -> None:
    """use_audio_input: the model computes the features."""
    config = (data / "config.yaml").read_text() + "use_audio_input: true\n"
    for file in ("dict.txt", "sentencepiece.bpe.model"):
        (tmp_path / file).write_bytes((data / file).read_bytes())
    (tmp_path / "config.yaml").write_text(config)
    for split in SPLITS:
        header, *rows = (data / f"{split}.tsv").read_text().splitlines()
        cells = [row.split("\t") for row in rows]
        rows = ["\t".join((c[0], c[1], str(int(c[2]) * 160 + 240), *c[3:])) for c in cells]
        (tmp_path / f"{split}.tsv").write_text("\n".join([header, *rows]) + "\n")
    samples = ["--max-source-positions", "100000", "--max-tokens", "160000", "--max-epoch", "2"]
    run_fairseq("train", training(tmp_path, tmp_path / "run", *samples)).check()
    longer = ["--max-source-positions", "100000", "--max-tokens", "400000"]
    assert len(texts(generate(tmp_path, tmp_path / "run", *longer), "D")) == SPLITS["test"]


@pytest.mark.slow
def test_two_processes(data: Path, tmp_path: Path) -> None:
    run_processes(2, "train", training(data, tmp_path, "--max-update", "3")).check()
    assert len(texts(generate(data, tmp_path), "D")) == SPLITS["test"]
