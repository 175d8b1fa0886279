"""Language models on tasks of the evaluation harness."""

import importlib.metadata
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("fairseq")

import lm_eval
from lm_eval.api.registry import MODEL_REGISTRY
from lm_eval.tasks import TaskManager

from tests.export.exported import END, MORE, write_words
from tests.export.harness_tasks import TASKS, TEXTS, write_tasks
from tests.fairseq_cli import REPOSITORY, TORCHRUN, run_fairseq, run_program
from tests.helpers import assert_close, pair
from tests.plugin.shrunk import shrunk
from tests.tools.families import FAMILIES, write_checkpoint
from tests.tools.in_process import run_tool
from tests.tools.untrained import write_untrained
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.evaluation.harness import MODEL, CheckpointLM, register
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.huggingface.writing import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    write_words(folder / "words")
    write_tasks(folder / "tasks")
    return folder


def written(name: str, folder: Path) -> tuple[Any, Path]:
    """A family's tiny model, and its checkpoint."""
    path = folder / f"{name}.pt"
    return write_checkpoint((FAMILIES | MORE)[name], path), path


def log_probabilities(model: Any, text: str, context: str = "") -> torch.Tensor:
    """Of each word of a text and of the end, after a context."""
    numbers = [[int(word[1:]) + 4 for word in part.split()] for part in (context, text)]
    tokens = [*numbers[0], *numbers[1], END]
    with torch.no_grad():
        logits = model(torch.tensor([[END, *tokens[:-1]]]))[0][0]
    return logits.log_softmax(-1)[range(len(tokens)), tokens][len(numbers[0]) :]


@pytest.mark.parametrize("name", ["gpt", "longnet", "retnet", "xpos", "bitnet", "sparse_gpt"])
def test_tasks_agree_with_the_definition(name: str, folder: Path) -> None:
    """Likelihoods of choices and of whole texts, in batches of uneven length."""
    model, checkpoint = written(name, folder)
    harness = CheckpointLM(str(checkpoint), data=str(folder / "words"), device="cpu", batch_size=3)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(harness, tasks=[*TASKS], task_manager=manager, log_samples=True, bootstrap_iters=0)
    for sample in found["samples"]["choices"]:
        context = sample["doc"]["text"]
        for choice, ((score, _),) in zip(TASKS["choices"]["doc_to_choice"], sample["resps"], strict=True):
            assert is_near(score, log_probabilities(model, choice, context)[:-1].sum())
    for sample in found["samples"]["rolling"]:
        assert is_near(sample["resps"][0][0], log_probabilities(model, sample["doc"]["text"])[:-1].sum())
    for sample in found["samples"]["answers"]:
        assert sample["resps"][0][0].split() == greedy(model, sample["doc"]["text"], 6, stop="w7")


def is_near(found: object, expected: torch.Tensor) -> bool:
    return math.isclose(float(str(found)), float(expected), rel_tol=1e-4)


def greedy(model: Any, context: str, most: int, stop: str) -> list[str]:
    """The likeliest words, one after the other."""
    tokens = [END, *(int(word[1:]) + 4 for word in context.split())]
    found: list[str] = []
    for _ in range(most):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0][0, -1]
        logits[1] = -math.inf  # padding
        tokens.append(int(logits.argmax()))
        word = f"w{tokens[-1] - 4}"
        if tokens[-1] == END or word == stop:
            break
        found += [word] if tokens[-1] >= 4 else []
    return found


def test_perplexity_agrees_with_fairseq_eval_lm(folder: Path, tmp_path: Path) -> None:
    """Of the same lines; fairseq counts their ends as well."""
    (tmp_path / "test.txt").write_text("\n".join(TEXTS) + "\n")
    given = ["--only-source", "--testpref", tmp_path / "test.txt", "--srcdict", folder / "words/dict.txt"]
    run_fairseq("preprocess", [*given, "--destdir", tmp_path / "data"], plugin=False).check()
    task = ["--task", "language_modeling", "--tokens-per-sample", "32"]
    checkpoint = write_untrained(tmp_path / "model.pt", tmp_path / "data", *task, *shrunk("gpt_xpos_small"))
    options = [tmp_path / "data", "--path", checkpoint, "--sample-break-mode", "eos", "--cpu"]
    output = run_fairseq("eval_lm", options).check().output
    tokens = sum(len(text.split()) + 1 for text in TEXTS)
    total = float(re.findall(r"Loss \(base 2\): ([\d.]+)", output)[-1]) * tokens * math.log(2)
    harness = CheckpointLM(str(checkpoint), device="cpu", batch_size=2)
    rolling = harness.loglikelihood_rolling([Request((text,)) for text in TEXTS])
    ends = [log_probabilities(harness.model.core, text)[-1] for text in TEXTS]
    assert math.isclose(-sum(rolling) - float(sum(ends)), total, rel_tol=1e-3)  # it is printed with four digits


@dataclass(frozen=True)
class Request:
    """Of the harness, as far as it is read."""

    args: tuple[str, ...]


def evaluated(folder: Path, model: str, arguments: dict[str, Any], tasks: list[str]) -> dict[str, list[Any]]:
    """Answers of a model to tasks, by a name that the harness knows."""
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    how = {"task_manager": manager, "log_samples": True, "bootstrap_iters": 0, "device": "cpu"}
    found = lm_eval.simple_evaluate(model, model_args=arguments, tasks=tasks, **how)
    return {task: [sample["resps"] for sample in found["samples"][task]] for task in tasks}


def test_entry_point(folder: Path, tmp_path: Path) -> None:
    """Later versions of the harness find the model by it; this one is handed it."""
    declared = (REPOSITORY / "pyproject.toml").read_text().partition('[project.entry-points."lm_eval.models"]')[2]
    ((name, value), *_) = re.findall(r'^(\w+) = "(.+)"$', declared, re.MULTILINE)
    assert name == MODEL
    entry = importlib.metadata.EntryPoint(name, value, "lm_eval.models")
    importlib.import_module("lm_eval.models")
    with mock.patch.dict(MODEL_REGISTRY._objs):
        MODEL_REGISTRY._objs.pop(MODEL, None)
        MODEL_REGISTRY.register(MODEL, target=entry)
        _, checkpoint = written("gpt", tmp_path)
        given = {"checkpoint": str(checkpoint), "data": str(folder / "words")}
        assert len(evaluated(folder, MODEL, given, ["choices"])["choices"]) == len(TEXTS)
        register()
        assert MODEL_REGISTRY.get(MODEL) is CheckpointLM


@pytest.mark.parametrize("name", ["gpt", "retnet", "longnet"])
def test_exported_folder_gives_the_same(name: str, folder: Path, tmp_path: Path) -> None:
    """The harness's own model of transformers, as the guide gives it."""
    register()
    _, checkpoint = written(name, tmp_path)
    export(checkpoint, tmp_path / "exported", Dictionaries(folder / "words"))
    tasks = ["choices", "answers"]
    ours = evaluated(folder, MODEL, {"checkpoint": str(checkpoint), "data": str(folder / "words")}, tasks)
    exported = {"pretrained": str(tmp_path / "exported"), "trust_remote_code": True, "prefix_token_id": END}
    theirs = evaluated(folder, "hf", exported, tasks)
    assert ours["answers"] == theirs["answers"]
    for mine, other in zip(ours["choices"], theirs["choices"], strict=True):
        assert [best for ((_, best),) in mine] == [best for ((_, best),) in other]
        assert_close(*pair(torch.tensor([score for ((score, _),) in side]) for side in (mine, other)), "float32")


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(folder: Path, tmp_path: Path) -> None:
    """Likelihoods, perplexities and answers, in the order of the texts."""
    pytest.importorskip("accelerate")
    _, checkpoint = written("retnet", tmp_path)
    found = {}
    for processes in (1, 2):
        output = tmp_path / f"{processes}.json"
        launch = [*TORCHRUN, "--standalone", "--nproc-per-node", str(processes)]
        words = ["-m", "tests.export.harness_worker", str(checkpoint), str(folder), str(output)]
        run_program([*launch, *words], environment={"ACCELERATE_USE_CPU": "true"}).check()
        found[processes] = json.loads(output.read_text())
    assert [found[processes]["processes"] for processes in (1, 2)] == [1, 2]
    one, two = found[1]["samples"], found[2]["samples"]
    assert one["answers"] == two["answers"]
    for task in ("choices", "rolling"):
        scores = [torch.tensor(list(numbers(side[task]))) for side in (one, two)]
        assert_close(*pair(scores), "float32")


def numbers(found: Any) -> Iterator[float]:
    """All numbers in nested lists."""
    if isinstance(found, list):
        for entry in found:
            yield from numbers(entry)
    else:
        yield float(found)


def test_command(folder: Path, tmp_path: Path) -> None:
    """With options of the harness itself."""
    _, checkpoint = written("gpt", tmp_path)
    given = [checkpoint, "--data", folder / "words", "--tasks", "choices", "--model-args", "max_length=16"]
    done = run_tool("lm-eval", *given, "--options", f"--include_path {folder}/tasks --limit 2 --device cpu").check()
    assert re.search(r"\|choices\|.*\|acc *\|", done.stdout)


def test_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    _, checkpoint = written("mt", tmp_path)
    with pytest.raises(InputError, match="TorchScaleForSeq2SeqLM; the harness's tasks need a causal model"):
        CheckpointLM(str(checkpoint), data=str(folder / "words"), device="cpu")
