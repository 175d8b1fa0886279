"""--ddp-backend fully_sharded: several gloo processes that hold slices of a model train what one process trains."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.expert_training import CRITERION
from tests.distributed.fully_sharded import ADAM, SHARDED
from tests.fairseq_cli import (
    run_beside_fairseq,
    run_fairseq,
    run_gloo,
    run_processes,
    tiny_language_data,
    tiny_translation_data,
)
from tests.plugin.drawings import make_drawings, make_folders
from tests.plugin.image_models import IMAGES, IMAGES_AND_TEXT
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.core.parallel.fully_sharded import ShardingOptions

COMMON = ["--cpu", "--dropout", "0", "--batch-size", "2", "--clip-norm", "0.5", "--num-workers", "0", "--no-save"]
COMMON += ["--required-batch-size-multiple", "1", "--max-update", "100"]
LANGUAGE = ["--task", "language_modeling", "--tokens-per-sample", "8", "--max-target-positions", "30"]
BRANCHES = ["--segment-length", "[4,8]", "--dilated-ratio", "[1,2]"]
TWO_EXPERTS = ["--moe-expert-count", "2"]
FAMILIES = ["gpt", "bert", "mt", "mt-two-experts", "retnet", "longnet", "longvit", "beit3"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Words of fairseq-train, one of each family."""
    folder = tmp_path_factory.mktemp("families")
    text, pairs = str(tiny_language_data(folder)), str(tiny_translation_data(folder))
    folders = str(make_folders(folder / "folders", train=6, valid=2))
    drawings = str(make_drawings(folder / "drawings", train=24, valid=2))
    criterion = ["--criterion", "linear_cross_entropy"]
    masked = ["--task", "masked_lm", "--criterion", "masked_lm", "--mask-prob", "0.3", "--tokens-per-sample", "8"]
    translation = [pairs, "--task", "translation", *shrunk("mt_xmoe_small"), *CRITERION, "--share-all-embeddings"]
    words = {
        "gpt": [text, *LANGUAGE, *shrunk("gpt_deepnorm_small"), *criterion, "--share-decoder-input-output-embed"],
        "bert": [text, *masked, *shrunk("bert_magneto_small"), "--attention-dropout", "0"],
        "mt": [*translation, "--moe-gate-loss-wt", "0.1"],
        "mt-two-experts": [*translation, *TWO_EXPERTS],
        "retnet": [text, *LANGUAGE, *shrunk("retnet_small"), "--checkpoint-activations"],
        "longnet": [text, *LANGUAGE, *shrunk("longnet_small"), *BRANCHES],
        "longvit": [folders, *IMAGES],
        "beit3": [drawings, *IMAGES_AND_TEXT, *shrunk("beit3_base"), "--drop-path-rate", "0"],
    }
    return {name: [*map(str, given), *COMMON] for name, given in words.items()}


OPTIMIZERS = {"sgd": ["--optimizer", "sgd", "--lr", "0.1"], "adam": ADAM}
RUNS = [(2, "adam"), (4, "sgd")]
SUMMED_ONCE = ["--no-reshard-after-forward"]
"""Gradients of the two batches of an update in two processes are summed over processes once."""


@pytest.fixture(scope="module")
def recorded(cases: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Updates in one, two and four processes, by number of processes, optimizer and family."""
    folder = tmp_path_factory.mktemp("recorded")
    runs = [*((1, optimizer) for optimizer in OPTIMIZERS), *RUNS]
    for processes, optimizer in runs:
        more = [*OPTIMIZERS[optimizer]] + ([] if processes == 1 else [*SHARDED, "--checkpoint-format", "merged"])
        more += SUMMED_ONCE if processes == 2 else []
        path = str(folder / f"{processes}{optimizer}")
        code = f"from tests.distributed.updates import record\nrecord({cases!r}, {path!r}, *{more!r})"
        run_beside_fairseq(code, plugin=False).check() if processes == 1 else run_gloo(processes, code).check()
    return {run: torch.load(folder / "{}{}".format(*run)) for run in runs}


@pytest.mark.parametrize(("processes", "optimizer"), RUNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_process(family: str, optimizer: str, processes: int, recorded: Any) -> None:
    ours, expected = (recorded[number, optimizer][family] for number in (processes, 1))
    for name in ("losses", "norms"):
        assert len(ours[name]) == 3
        assert ours[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6)
    assert ours["initial"].keys() == ours["weights"].keys() == expected["weights"].keys()
    for name, value in expected["initial"].items():
        assert torch.equal(ours["initial"][name], value), f"{name} began with other values"
    for name, value in expected["weights"].items():
        if not name.endswith("k_proj.bias"):  # attention does not depend on it: Adam magnifies rounding alone
            torch.testing.assert_close(ours["weights"][name], value, atol=1e-6, rtol=0, msg=name)


def test_slices_keep_the_marks_of_parameters() -> None:
    """By which SparseClip tells experts apart, also where one process holds all of them."""
    code = """
import torch
from torch import nn
from torchscale_fairseq.core.parallel.fully_sharded import LocalParameters, ShardingOptions, shard_model
model = nn.Module()
model.layers = nn.ModuleList([nn.Linear(2, 2, bias=False)])
model.layers[0].weight.expert = "mark"
shard_model(model, ShardingOptions(torch.device("cpu")))
assert [slice.expert for slice in LocalParameters(model.parameters()).local] == ["mark"]
"""
    run_gloo(1, code).check()


def test_gradients_kept_whole_are_summed_once() -> None:
    code = """
import torch
from torch import distributed as dist, nn
from torchscale_fairseq.core.parallel.fully_sharded import ShardingOptions, gradients_kept_whole, shard_model
model = nn.Linear(2, 2, bias=False)
shard_model(model, ShardingOptions(torch.device("cpu"), reshard_after_forward=False))
x = torch.full((1, 2), float(dist.get_rank()))
with gradients_kept_whole([model]):
    model(x).sum().backward()
assert model.weight.grad is None, "summed over processes too early"
model(x).sum().backward()
assert torch.equal(model.weight.grad.full_tensor(), torch.ones(2, 2))
"""
    assert run_gloo(2, code).check().stdout.count("passed") == 2


@pytest.mark.parametrize(
    ("flags", "whole"),
    [
        ({}, False),
        ({"reshard_after_forward": False}, True),
        ({"reshard_after_forward": False, "compute_dtype": torch.bfloat16}, False),
        ({"reshard_after_forward": False, "compute_dtype": torch.bfloat16, "reduce_dtype": torch.float32}, True),
    ],
)
def test_when_gradients_are_kept_whole(flags: dict[str, Any], whole: bool) -> None:
    assert ShardingOptions(torch.device("cpu"), **flags).keeps_gradients_whole is whole


ONE_LAYER = [*LANGUAGE, *shrunk("longnet_small"), *BRANCHES, "--dropout", "0", "--batch-size", "4", "--cpu", *ADAM]
ONE_LAYER += ["--num-workers", "0", "--max-update", "3", "--required-batch-size-multiple", "1", "--log-format", "none"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (2, ["--seq-parallel"]),
        (4, ["--seq-parallel", "--seq-parallel-size", "2", "--fsdp-shard-size", "2", "--update-freq", "1"]),
        (4, ["--fsdp-shard-size", "2", "--no-reshard-after-forward", "--cpu-offload"]),
    ],
    ids=["sequences", "groups-of-sequences", "hybrid"],
)
def test_options_equal_one_process(processes: int, flags: list[str], tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    batches = processes if "--seq-parallel" not in flags else processes // 2
    alone = [data, *ONE_LAYER, "--save-dir", tmp_path / "alone", "--update-freq", batches]
    run_fairseq("train", alone).check()
    ours = [data, *ONE_LAYER, "--save-dir", tmp_path / "ours", *SHARDED, *flags]
    run_processes(processes, "train", ours, timeout=600).check()
    assert_same_weights(tmp_path / "alone", tmp_path / "ours", 1e-6)
