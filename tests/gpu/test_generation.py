"""Options of generation and precision flags do on a GPU as they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, run_fairseq, tiny_language_data, tiny_translation_data
from tests.plugin.built import tiny, words
from tests.plugin.generating import BY_THE_GENERATOR, texts
from tests.plugin.shrunk import shrunk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRANSLATION = ["transformer", "mt_deepnorm_small", "mt_magneto_small", "mt_xmoe_small", "mt_retnet_small"]
STOCK = ["--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "16"]
STOCK += ["--decoder-embed-dim", "16", "--encoder-attention-heads", "2", "--decoder-attention-heads", "2"]
BY_THE_COMMAND = {
    "nbest": ["--nbest", "2"],
    "prefix_size": ["--prefix-size", "2"],
    "score_reference": ["--score-reference"],
    "sacrebleu": ["--scoring", "sacrebleu"],
    "no_repeat_ngram_size": ["--no-repeat-ngram-size", "2"],
    "retain_dropout": ["--retain-dropout"],
    "shard": ["--num-shards", "2", "--shard-id", "1"],
    "min_len": ["--min-len", "9"],
    "diverse": ["--beam", "4", "--diverse-beam-groups", "2", "--diverse-beam-strength", "3"],
}


@pytest.mark.parametrize("arch", TRANSLATION)
def test_option_changes_what_is_generated(arch: str) -> None:
    model, unchanged = tiny(arch, words()).cuda(), []
    for name, given in BY_THE_GENERATOR.items():
        rest = {other: value for other, value in given.items() if other != name}
        if texts(model, **given) == texts(model, **rest):
            unchanged.append(name)
    assert not unchanged


def run(command: str, data: Path, *arguments: object, **options: Any) -> str:
    """A command's output, on the first GPU."""
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    return run_fairseq(command, [data, *arguments], environment=environment, **options).check().output


def scores(output: str) -> dict[str, str]:
    return dict(re.findall(r"^H-(\d+)\t(\S+)", output, re.MULTILINE))


@pytest.fixture(scope="module")
def translation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_translation_data(tmp_path_factory.mktemp("translation"))


@pytest.fixture(scope="module", params=["transformer", "mt_magneto_small", "mt_retnet_small"])
def translator(request: pytest.FixtureRequest, translation: Path) -> Path:
    """The checkpoint of a model after a few updates."""
    folder = translation.parent / request.param
    arch = STOCK if request.param == "transformer" else shrunk(request.param)
    run("train", translation, *arch, *FEW_UPDATES, "--save-dir", folder, "--dropout", "0.3")
    return folder / "checkpoint_last.pt"


def test_each_option_shows_in_what_is_printed(translator: Path, translation: Path) -> None:
    """All but the speed; the command again prints the same."""

    def printed(*flags: str) -> list[str]:
        output = run("generate", translation, "--path", translator, "--seed", "1", "--min-len", "6", *flags)
        return [line for line in output.splitlines() if re.match(r"[HDP]-\d|Generate ", line)]

    usual = printed()
    assert len(usual) > 40 and printed() == usual
    assert [name for name, flags in BY_THE_COMMAND.items() if printed(*flags) == usual] == []


@pytest.mark.parametrize("precision", ["--fp16", "--bf16"])
def test_precision_of_translations(precision: str, translator: Path, translation: Path) -> None:
    """Generated, typed in, and validated: the numbers are near those of float32, and not equal."""
    for command, flags in (("generate", ["--score-reference"]), ("interactive", ["--beam", "1"])):
        typed = {"stdin": "w1 w2 w3\nw4 w5\n"} if command == "interactive" else {}
        whole, half = (
            scores(run(command, translation, "--path", translator, *flags, *of, **typed)) for of in ([], [precision])
        )
        assert whole.keys() == half.keys() and whole != half
        if command == "generate":
            assert all(abs(float(whole[number]) - float(half[number])) < 0.1 for number in whole)
    validated = [
        run("validate", translation, "--path", translator, "--batch-size", "8", *of) for of in ([], [precision])
    ]
    losses = [float(re.findall(r"\| loss (\S+)", output)[-1]) for output in validated]
    assert abs(losses[0] - losses[1]) < 0.05


@pytest.mark.parametrize("arch", ["gpt_xpos_small", "retnet_small"])
def test_precision_of_language_models(arch: str, tmp_path: Path) -> None:
    """fairseq-eval-lm in each precision, on weights trained in it."""
    data = tiny_language_data(tmp_path)
    for precision in ([], ["--fp16"], ["--bf16"]):
        task = ["--task", "language_modeling", "--tokens-per-sample", "32"]
        folder = tmp_path / "".join(precision)
        run("train", data, *shrunk(arch), *task, *FEW_UPDATES, "--save-dir", folder, *precision)
        read: list[Any] = [data, "--path", folder / "checkpoint_last.pt", "--tokens-per-sample", "32"]
        found = [run("eval_lm", *read, *of) for of in ([], precision)]
        losses = [float(re.findall(r"Loss \(base 2\): ([\d.]+)", output)[-1]) for output in found]
        assert abs(losses[0] - losses[1]) < 0.05
