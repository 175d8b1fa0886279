"""--task instruction_tuning and torchscale-fairseq answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("sentencepiece")

from tests.checkpoints import assert_same_weights
from tests.data.corpora import made_corpus
from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.answering import Answerer, Sampling

ANSWERS = {"bar dar": "gas kir", "fat": "lot", "mus net": "bis", "kor": "gut gat lis"}


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = made_corpus(tmp_path_factory.mktemp("instructions") / "data")
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in ANSWERS.items()]
    for split in ("train", "valid"):
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return data


def train(data: Path, save_dir: Path, *flags: object) -> Finished:
    words = [
        data,
        "--task",
        "instruction_tuning",
        *shrunk("gpt_deepnorm"),
        *FEW_UPDATES,
        "--cpu",
        "--save-dir",
        save_dir,
    ]
    words += ["--tokens-per-sample", "32", "--dropout", "0", "--batch-size", "4", "--no-epoch-checkpoints"]
    return run_fairseq("train", [*words, *flags])


def test_a_model_learns_answers(instructions: Path, tmp_path: Path) -> None:
    train(instructions, tmp_path, "--max-update", "50", "--disable-validation").check()
    answerer = Answerer(tmp_path / "checkpoint_last.pt", instructions, Sampling(max_tokens=16))
    prompts = [[{"role": "user", "content": prompt}] for prompt in ANSWERS]
    assert [answerer.answer(prompt) for prompt in prompts] == list(ANSWERS.values())
    with pytest.raises(InputError, match=r"the conversation has \d+ tokens, and the model reads 32; shorten it"):
        answerer.answer([{"role": "user", "content": "bar dar " * 20}])
    drawn = Answerer(tmp_path / "checkpoint_last.pt", instructions, Sampling(16, temperature=1.0, top_p=0.5))
    assert drawn.answer(prompts[1]) == "lot"


@pytest.mark.slow
def test_commands_that_do_not_fit_name_the_one_that_does(instructions: Path, tmp_path: Path) -> None:
    train(instructions, tmp_path).check()
    words = [instructions, "--task", "instruction_tuning", "--path", tmp_path / "checkpoint_last.pt", "--cpu"]
    refused = run_fairseq("interactive", words, stdin="bar\n").last_line
    assert "does not serve fairseq-interactive; torchscale-fairseq answer answers" in refused
    run_fairseq("validate", [*words, "--batch-size", "2"]).check()


@pytest.mark.slow
def test_saved_data_sets_resume_like_json_lines(instructions: Path, tmp_path: Path) -> None:
    """An interrupted run on a saved folder reaches the weights of a whole run on JSON lines."""
    datasets = pytest.importorskip("datasets")
    records = [{"prompt": prompt, "completion": answer} for prompt, answer in ANSWERS.items()] * 3
    runs = {}
    for name in ("json", "saved"):
        runs[name] = tmp_path / name
        data = shutil.copytree(instructions, runs[name] / "data")
        (data / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if name == "saved":
            (data / "train.jsonl").unlink()
            datasets.Dataset.from_list(records).save_to_disk(data / "train")
            train(data, runs[name], "--max-update", "4").check()
        train(data, runs[name], "--max-update", "8").check()
    assert_same_weights(runs["json"], runs["saved"], atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"--temperature \(-1.0\) must be at least 0"),
        ({"top_p": 0.0}, r"--top-p \(0.0\) must be above 0 and at most 1"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(16, **options)
