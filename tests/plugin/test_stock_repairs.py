"""Each repair: the failure on stock fairseq, and its absence with the plugin."""

import inspect
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fairseq_cli import (
    FEW_UPDATES,
    TINY_LANGUAGE_MODEL,
    TINY_TRANSFORMER,
    Finished,
    run_beside_fairseq,
    run_fairseq,
)
from torchscale_fairseq.checkpoints.reading import load_checkpoint

TRAIN = ["{data}", *TINY_TRANSFORMER, *FEW_UPDATES, "--save-dir", "{save}"]
TRAIN_LANGUAGE = ["{language}", *TINY_LANGUAGE_MODEL, *FEW_UPDATES, "--save-dir", "{save}"]
GENERATE = ["{data}", "--path", "{checkpoint}", "--beam", "2"]


def overflow_was_skipped(mended: Finished, folder: Path) -> None:
    assert "gradient overflow detected" in mended.output
    assert "num_updates: 4 >= max_update: 4" in mended.output


def weights_are_bf16(mended: Finished, folder: Path) -> None:
    """fairseq saves them as float32."""
    weight = load_checkpoint(folder / "checkpoint_last.pt")["model"]["encoder.layers.0.fc1.weight"]
    assert torch.equal(weight, weight.bfloat16().float())


def average_stayed_at_the_start(mended: Finished, folder: Path) -> None:
    """As it should with a learning rate of zero."""
    state = load_checkpoint(folder / "checkpoint_last.pt")
    for name, value in state["model"].items():
        if not name.endswith("version"):
            torch.testing.assert_close(state["extra_state"]["ema"][name], value, msg=name)


def resumed(mended: Finished, folder: Path) -> None:
    assert "Loaded checkpoint" in mended.output
    assert "num_updates: 6 >= max_update: 6" in mended.output


def slowness_was_said(mended: Finished, folder: Path) -> None:
    assert "--fp16 trains several times slower on a CPU than float32" in mended.output


def nothing_more(mended: Finished, folder: Path) -> None:
    """The command's success is all."""


@dataclass(frozen=True)
class Case:
    """A command that stock fairseq ends with an error matching ``failure``, and what to check with the plugin."""

    name: str
    failure: str
    command: str
    arguments: list[str]
    check: Callable[[Finished, Path], None] = nothing_more


CASES = [
    Case("generate", r"argparse\.Namespace", "generate", GENERATE),
    Case(
        "resume",
        r"argparse\.Namespace",
        "train",
        [*TRAIN, *shlex.split("--restore-file {checkpoint} --max-update 6")],
        resumed,
    ),
    Case("fp16", "CUDA|NVIDIA", "train", [*TRAIN, "--fp16"], slowness_was_said),
    Case(
        "fp16-overflow",
        "CUDA|NVIDIA",
        "train",
        [*TRAIN, *shlex.split("--fp16 --fp16-no-flatten-grads --fp16-init-scale 1048576")],
        overflow_was_skipped,
    ),
    Case("bf16", "xla_device", "train", [*TRAIN, "--bf16"], weights_are_bf16),
    Case("memory-efficient-bf16", "xla_device", "train", [*TRAIN, "--memory-efficient-bf16"], weights_are_bf16),
    Case("buckets", "interpolation|numpy", "train", [*TRAIN, *shlex.split("--num-batch-buckets 2 --max-tokens 400")]),
    Case("break-mode-eos", "numpy", "train", [*TRAIN_LANGUAGE, "--sample-break-mode", "eos"]),
    Case(
        "average-from-checkpoint-without-one",
        "KeyError: 'model'",
        "train",
        [*TRAIN_LANGUAGE, *shlex.split("--store-ema --lr 0 --finetune-from-model {language_checkpoint}")],
        average_stayed_at_the_start,
    ),
    Case(
        "validate-without-task",
        "KeyError: None",
        "validate",
        shlex.split("{language} --path {language_checkpoint} --batch-size 16"),
    ),
]


@pytest.fixture
def run(
    tmp_path: Path, translation_data: Path, language_data: Path, stock_checkpoint: Path, language_checkpoint: Path
) -> Any:
    """Runs a command with the places of data and checkpoints filled in, on stock or with the plugin."""

    def run(command: str, arguments: Any, plugin: bool) -> Finished:
        places = {
            "data": translation_data,
            "language": language_data,
            "checkpoint": stock_checkpoint,
            "language_checkpoint": language_checkpoint,
            "save": tmp_path / ("plugin" if plugin else "stock"),
        }
        return run_fairseq(command, [argument.format(**places) for argument in arguments], plugin=plugin)

    return run


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_command_fails_on_stock_and_not_with_plugin(case: Case, run: Any, tmp_path: Path) -> None:
    stock = run(case.command, case.arguments, plugin=False)
    case.check(run(case.command, case.arguments, plugin=True).check(), tmp_path / "plugin")
    if stock.returncode == 0:
        pytest.skip("stock fairseq is sound here")
    assert re.search(case.failure, stock.output), stock.output[-2000:]


def test_checkpoints_hold_no_type_that_is_refused(stock_checkpoint: Path) -> None:
    code = f"import torch; print(torch.serialization.get_unsafe_globals_in_checkpoint('{stock_checkpoint}'))"
    refused = [run_beside_fairseq(code, plugin=plugin).check().stdout for plugin in (False, True)]
    assert "argparse.Namespace" in refused[0] and "_reconstruct" in refused[0]
    assert "[]" in refused[1]


def test_flat_fp16_equals_unflattened(run: Any, tmp_path: Path) -> None:
    run("train", [*TRAIN, "--fp16"], plugin=True).check()
    run("train", [*TRAIN, "--fp16", "--fp16-no-flatten-grads", "--save-dir", f"{tmp_path}/each"], plugin=True).check()
    flat, each = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("plugin", "each"))
    for name, value in each.items():
        torch.testing.assert_close(flat[name], value, msg=name)


def test_tpu_stays_refused_without_torch_xla(run: Any) -> None:
    assert "xla" in run("train", [*TRAIN, "--tpu", "--bf16"], plugin=True).last_line


def test_generate_translates_every_sentence(run: Any, translation_data: Path, stock_checkpoint: Path) -> None:
    arguments = [translation_data, "--path", stock_checkpoint, "--beam", "1"]
    unsafe = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # so that stock gets as far as translating
    translated = [
        len(
            re.findall(
                r"^H-", run_fairseq("generate", arguments, plugin=plugin, environment=unsafe).check().stdout, re.M
            )
        )
        for plugin in (False, True)
    ]
    assert translated in ([16, 21], [21, 21])


def test_training_sees_every_sentence(run: Any) -> None:
    """83 sentences make five batches of 16 and one of 3."""
    one_epoch = [*TRAIN, "--max-update", "0", "--max-epoch", "1"]
    stock, mended = (run("train", one_epoch, plugin=plugin).check().output for plugin in (False, True))
    assert "num_updates 6" in mended
    assert "num_updates 5" in stock or "num_updates 6" in stock


@pytest.mark.parametrize("vector", [True, False], ids=["vector", "function"])
def test_batches_hold_every_index_once(vector: bool) -> None:
    from fairseq.data import data_utils

    from torchscale_fairseq import plugin

    plugin.register()
    stock = inspect.unwrap(data_utils.batch_by_size)
    generator = np.random.default_rng(0)
    for size in (0, 1, 5, 8, 21, 64, 100):
        tokens = generator.integers(1, 30, size)
        indices = np.arange(size)
        for limits in ({"max_tokens": 120}, {"max_sentences": 9}, {"max_tokens": 300, "max_sentences": 16}):
            for multiple in (1, 4, 8):
                arguments = {
                    "num_tokens_fn": lambda index, tokens=tokens: int(tokens[index]),
                    "num_tokens_vec": tokens if vector else None,
                    "required_batch_size_multiple": multiple,
                    **limits,
                }
                batches = data_utils.batch_by_size(indices, **arguments)
                assert np.concatenate([*batches, np.array([], dtype=int)]).tolist() == indices.tolist()
                if size:
                    kept = [batch.tolist() for batch in stock(indices, **arguments)]
                    assert [batch.tolist() for batch in batches][: len(kept)] == kept


def test_fixed_shapes_are_left_to_stock() -> None:
    from fairseq.data import data_utils

    from torchscale_fairseq import plugin

    plugin.register()
    shapes = np.array([[4, 8], [2, 16]])
    batches = data_utils.batch_by_size(np.arange(10), lambda index: 5, fixed_shapes=shapes)
    assert sum(len(batch) for batch in batches) == 10


def test_rank_without_process_group() -> None:
    code = "from fairseq import distributed_utils; print('rank', distributed_utils.get_data_parallel_rank())"
    assert "rank 0" in run_beside_fairseq(code, plugin=True).check().output
    stock = run_beside_fairseq(code, plugin=False)
    if stock.returncode == 0:
        pytest.skip("stock fairseq is sound here")
    assert "ValueError" in stock.last_line


def test_noise_is_hidden(run: Any) -> None:
    stock, mended = (run("train", TRAIN, plugin=plugin).check().stderr for plugin in (False, True))
    assert "is no longer experimental" in stock
    assert not re.search("hydra|pin_memory|FutureWarning", mended), mended


def test_eval_lm_leaves_no_text_out(language_data: Path, language_checkpoint: Path) -> None:
    """Stock scores the 8 tokens that are left over by blocks of 64, of 136."""
    words = [language_data, "--path", language_checkpoint, "--cpu", "--tokens-per-sample", "64"]
    assert "Evaluated 8 tokens" in run_fairseq("eval_lm", words, plugin=False).check().output
    mended = run_fairseq("eval_lm", words)
    assert mended.returncode != 0
    assert "--tokens-per-sample (64) is longer than the model's 32 positions" in mended.last_line


def test_prompts_are_not_cut(translation_data: Path, stock_checkpoint: Path) -> None:
    """Translations that begin with the whole reference, of up to nine words, and may have three."""
    allowed = ["--prefix-size", "20", "--max-len-b", "3", "--beam", "1", "--num-workers", "0"]
    words = [translation_data, "--path", stock_checkpoint, "--cpu", *allowed]
    stock = run_fairseq("generate", words, plugin=False, environment={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}).check()
    assert max(len(h.split()) for h in re.findall(r"^H-\d+\t\S+\t(.*)$", stock.stdout, re.MULTILINE)) == 3
    mended = run_fairseq("generate", words)
    assert mended.returncode != 0 and "tokens is longer than the 3 that --max-len-a" in mended.last_line
