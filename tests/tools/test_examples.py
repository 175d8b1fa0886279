"""The example at the end of each subcommand's help works when it is typed."""

import random
import shlex
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

pytest.importorskip("fairseq")
pytest.importorskip("tensorboard")

from scripts.experiments.scenes import write_scenes
from tests.export.harness_tasks import write_tasks
from tests.fairseq_cli import Finished
from tests.plugin.drawn_scans import draw_scans
from tests.plugin.shrunk import shrunk
from tests.plugin.spoken import write_corpus
from tests.tools.families import FAMILIES, build, write_checkpoint
from tests.tools.in_process import run_tool
from tests.tools.made_text import write_texts
from tests.tools.official_checkpoints import case_of, official_checkpoint, write_dictionaries
from tests.tools.preprocessing import preprocessing_in_server
from tests.tools.subcommands import ALL
from tests.tools.tensorboard_logs import write_logs
from tests.tools.untrained import write_untrained
from tests.tools.wheels import add_wheel
from torchscale_fairseq.checkpoints import distributed
from torchscale_fairseq.checkpoints.shards import ENTRY, EXPERT
from torchscale_fairseq.evaluation.needles import HAYSTACK, KEYS, NEEDLE
from torchscale_fairseq.tools.command import PROGRAM, make_parser
from torchscale_fairseq.tools.data import catalog_corpus, python_corpus
from torchscale_fairseq.tools.perplexity import count_tokens

FIRST = ["draw-details", "prepare-language", "prepare-translation", "train-tokenizer", "shard-corpus"]
FIRST = [f"data {name}" for name in FIRST] + ["convert to-safetensors", "convert from-torchscale"]
"""Examples whose output others read."""
NUMBERS = [f"number {index}" for index in range(13)]


def examples() -> dict[str, str]:
    """By the words of the subcommand, in an order in which they can be typed."""
    found: dict[Any, Any] = {}
    for words in ALL:
        parser = make_parser()
        for word in words:
            parser.load()
            parser = parser.subcommands[word]
        parser.load()
        if not parser.subcommands:
            assert parser.epilog is not None
            found[" ".join(words)] = parser.epilog.removeprefix("example:\n")
    return {name: found[name] for name in [*FIRST, *(name for name in found if name not in FIRST)]}


def type_in(example: str) -> Finished:
    """Type an example of one command, perhaps after ``echo TEXT |`` or with a file for a stream."""
    words = shlex.split(example.replace("\\\n", " "))
    stdin = ""
    if words[0] == "echo":
        stdin, words = words[1], words[words.index("|") + 1 :]
    if "<" in words:
        stdin, words = Path(words[-1]).read_text(), words[:-2]
    if ">" in words:
        words = words[: words.index(">")]
    assert words[0] == PROGRAM
    return run_tool(*words[1:], stdin=stdin)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs of the examples other than those that examples make; Python's library is small here, and nothing is
    downloaded."""
    write_texts(tmp_path / "text", random.Random(1), size=5)
    with (tmp_path / "text/train.txt").open("a") as stream:
        stream.write("\n".join([*HAYSTACK, NEEDLE, *KEYS, *"0123456789"]) + "\n")
    _write_models(tmp_path)
    (tmp_path / "runs/en-de").mkdir()
    if find_spec("openslide"):
        draw_scans(tmp_path / "scans", 1)
        (tmp_path / "scans/slides.csv").unlink()
    if find_spec("soundfile"):
        write_corpus(tmp_path / "speech")
    write_logs(tmp_path / "runs/en-de-xmoe", moe_load_most=60.0, moe_load_least=20.0)
    shutil.copy(tmp_path / "text/test.de", tmp_path / "runs/en-de/generate-test.txt")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    messages = {f"{a} {b} {c} files": f"Dateien {a} {b} {c}" for a in NUMBERS for b in NUMBERS for c in NUMBERS}
    add_wheel(wheels, "django", messages, "de/LC_MESSAGES/django.mo")
    monkeypatch.setattr(catalog_corpus, "download", lambda scratch: wheels)
    monkeypatch.setattr(python_corpus, "source_files", lambda library: {"a.py": ["A line of text."] * 9})
    monkeypatch.setattr(python_corpus, "MINIMUM_BYTES", 1)
    if find_spec("lm_eval"):
        write_tasks(tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write_models(folder: Path) -> None:
    gpt = FAMILIES["gpt"]
    adapted = replace(gpt, options={**gpt.options, "lora_rank": 2})
    for run, family in (("text", gpt), ("bitnet", FAMILIES["bitnet"]), ("adapters", adapted)):
        (folder / f"runs/{run}").mkdir(parents=True)
        write_checkpoint(family, folder / f"runs/{run}/checkpoint_best.pt")
    shutil.copy(folder / "runs/bitnet/checkpoint_best.pt", folder / "runs/bitnet/checkpoint_last.pt")
    for update in (10, 20):
        shutil.copy(folder / "runs/text/checkpoint_best.pt", folder / f"runs/text/checkpoint_1_{update}.pt")
    write_dictionaries(folder, case_of("fs_lm"))
    torch.save(official_checkpoint(case_of("fs_lm"), folder), folder / "official.pt")
    _write_sharded_experts(folder / "runs/sharded")
    _write_fully_sharded(folder / "runs/fully_sharded")


def _write_sharded_experts(folder: Path) -> None:
    options, model = build(FAMILIES["experts"])
    experts = {name: value for name, value in model.state_dict().items() if EXPERT.match(name)}
    rest = {name: value for name, value in model.state_dict().items() if name not in experts}
    (folder / "experts").mkdir(parents=True)
    torch.save({"model": experts, "optimizer": {}}, folder / "experts/update1.0of1.pt")
    entry = {"files": ["experts/update1.0of1.pt"], "experts": options["moe_expert_count"]}
    torch.save({"model": rest, "extra_state": {}, ENTRY: entry}, folder / "checkpoint_last.pt")


def _write_fully_sharded(folder: Path) -> None:
    state = {"model": dict(build(FAMILIES["gpt"])[1].state_dict()), "extra_state": {}}
    (folder / distributed.FOLDER).mkdir(parents=True)
    tensors = distributed.pop_tensors(state)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder / distributed.FOLDER / "update1"), no_dist=True)
    torch.save({**state, distributed.ENTRY: f"{distributed.FOLDER}/update1"}, folder / "checkpoint_last.pt")


def _write_after(folder: Path, name: str) -> None:
    """Inputs that are made of what the example of this name has made."""
    if name == "data draw-details":
        fits = ["--task", "image_classification", "--criterion", "image_classification"]
        images = [*fits, "--img-size", 256, "--patch-size", 32, *shrunk("longvit_tiny")]
        write_untrained(folder / "runs/details/checkpoint_best.pt", "data/details", *images)
    elif name == "data train-tokenizer":
        _write_scenes(folder)
    elif name == "data prepare-translation":
        translator = [*shrunk("mt_deepnorm_small"), "--share-all-embeddings"]
        write_untrained(folder / "runs/en-de/checkpoint_best.pt", "data/en-de", *translator)
    elif name == "data prepare-language":
        masked = ["--task", "masked_lm", "--criterion", "masked_lm", *shrunk("bert_magneto_small")]
        write_untrained(folder / "runs/masked/checkpoint_best.pt", "data/text", *masked)
        text = ["--task", "language_modeling", "--tokens-per-sample", "64", *shrunk("gpt_xpos_small")]
        for run in ("text", "instructions"):
            write_untrained(folder / f"runs/{run}/checkpoint_best.pt", "data/text", *text)
        count = count_tokens((folder / "text/test.txt").read_text(), folder / "data/text/sentencepiece.bpe.model")
        log = f"Evaluated {count} tokens in 1s\nLoss (base 2): 3.4, Perplexity: 10.56\n"
        (folder / "runs/text/eval-lm.log").write_text(log)


def _write_scenes(folder: Path) -> None:
    for run, task in (("questions", "visual_question_answering"), ("retrieval", "image_text_retrieval")):
        data = write_scenes(folder / "data" / run, task, train=4, valid=4)
        for file in ("dict.txt", "sentencepiece.bpe.model"):
            shutil.copy(folder / "data/shards" / file, data)
        criterion = {"visual_question_answering": "visual_question_answering"}.get(task, "image_text_contrastive")
        fits = ["--task", task, "--criterion", criterion, "--img-size", 32, "--patch-size", 8]
        write_untrained(folder / f"runs/{run}/checkpoint_best.pt", f"data/{run}", *fits, *shrunk("beit3_small"))


def test_examples_work(workplace: Path) -> None:
    failed = []
    with preprocessing_in_server():
        for name, example in examples().items():
            done = type_in(example)
            if name == "plot-expert-load" and find_spec("matplotlib") is None:
                assert "this needs matplotlib" in done.last_line
            elif name == "tile-slides" and find_spec("openslide") is None:
                assert "needs the package openslide" in done.last_line
            elif name == "data prepare-speech" and find_spec("soundfile") is None:
                assert "speech/train.tsv does not exist" in done.last_line
            elif name == "data speak-text" and shutil.which("espeak-ng") is None:
                assert "espeak-ng is not installed" in done.last_line
            elif name == "export hf" and find_spec("tokenizers") is None:
                assert "this needs tokenizers" in done.last_line
            elif name == "export ctranslate2" and find_spec("ctranslate2") is None:
                assert "this needs ctranslate2" in done.last_line
            elif name == "export onnx" and find_spec("onnxscript") is None:
                assert "is not installed" in done.last_line
            elif name == "lm-eval" and find_spec("lm_eval") is None:
                assert "this needs lm-eval" in done.last_line
            elif name == "import hf" and find_spec("tokenizers") is None:
                assert "masked-hf" in done.last_line
            elif done.returncode:
                failed.append(f"{example}: {done.last_line}")
            else:
                _write_after(workplace, name)
    assert not failed, "\n".join(failed)
